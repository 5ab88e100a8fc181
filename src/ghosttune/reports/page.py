"""The report of a run: one page that needs nothing but itself, and the PNG and CSV of every figure beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghosttune.registry import FIGURES
from ghosttune.reports.configuration import configuration, cost, origin
from ghosttune.reports.drawing import PALETTE, Pictures, collecting_later
from ghosttune.reports.evaluation import splits_of
from ghosttune.reports.examples import Shades, Texts, answers, extreme_rows
from ghosttune.reports.figures import INTRODUCTIONS, SECTIONS, Figure, draw, picture_name, write_figure
from ghosttune.reports.forgotten import changes
from ghosttune.reports.markup import Markup, joined, table, tag
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.samples import sampled_answers
from ghosttune.reports.verdict import interval, is_share, verdict
from ghosttune.run.directory import RunDir, write_folder, write_json, write_text

STYLE = Path(__file__).with_name("style.css")


def write_report(run: RunDir, texts: Texts, why_no_texts: str, shades: Shades) -> Path:
    """Writes report/ of a run and returns the path of its page.

    `texts` are those of training rows, `why_no_texts` the reason where there are none, `shades` their targets' numbers
    where they were asked for. Figures of data that the run does not have are left out. An earlier report is replaced as
    a whole.
    """
    numbers = RunNumbers(run)
    figures = figures_of(numbers)
    with collecting_later():
        drawn = {name: draw(name, figure) for name, figure in figures.items()}

    def fill(folder: Path) -> None:
        for name, figure in figures.items():
            write_figure(folder, name, figure, drawn[name])
        write_json(folder / "summary.json", numbers.summary)
        write_text(folder / "index.html", page(numbers, figures, drawn, texts, why_no_texts, shades))

    write_folder(run.report, fill)
    return run.report / "index.html"


def figures_of(numbers: RunNumbers) -> dict[str, Figure]:
    """Name -> figure, of those the run has data for, in the order of the page."""
    order = list(SECTIONS)
    entries = sorted(FIGURES, key=lambda entry: (order.index(entry.settings.section), entry.settings.position))
    made = {entry.name: entry.build(numbers) for entry in entries}
    return {name: figure for name, figure in made.items() if figure is not None}


def page(
    numbers: RunNumbers,
    figures: Mapping[str, Figure],
    drawn: Mapping[str, Mapping[str, Pictures]],
    texts: Texts,
    why_no_texts: str,
    shades: Shades,
) -> str:
    """The HTML."""
    blocks = {section: _figures(figures, drawn, section) for section in SECTIONS}
    beside = {
        "forgetting": changes(numbers),
        "loss": joined([_sets(numbers), _phases(numbers)]),
        "moved": _statistics(numbers),
        "rows": joined([_columns(numbers), extreme_rows(numbers, texts, why_no_texts, shades)]),
        "samples": sampled_answers(numbers),
        "evaluation": joined(
            [_scores(numbers), _contamination(numbers), *(answers(numbers, split) for split in splits_of(numbers))]
        ),
    }
    contents = {section: joined([block, beside.get(section, "")]) for section, block in blocks.items()}
    titles = {**SECTIONS, "cost": "Cost", "configuration": "Configuration, and where each setting came from"}
    contents |= {"cost": cost(numbers), "configuration": joined([configuration(numbers), origin(numbers)])}
    there = {section: content for section, content in contents.items() if content}
    links = [tag("li", tag("a", titles[section].split(",")[0].split(":")[0], href=f"#{section}")) for section in there]
    body = [
        tag(
            "header",
            tag("h1", numbers.run.path.resolve().name),
            tag("p", _subtitle(numbers), class_="soft"),
            verdict(numbers),
        ),
        tag("nav", tag("ul", *links)),
        tag(
            "main",
            *(
                tag("section", tag("h2", titles[section]), _introduction(section), content, id=section)
                for section, content in there.items()
            ),
        ),
        tag(
            "footer", f"ghosttune {numbers.record['ghosttune']}. Every figure's numbers stand beside this page as CSV."
        ),
    ]
    return "<!doctype html>\n" + tag(
        "html",
        tag(
            "head",
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            tag("title", f"{numbers.run.path.resolve().name}: report"),
            Markup(f"<style>{_style(max([1, *(len(figure.views) for figure in figures.values())]))}</style>"),
        ),
        tag("body", *body),
        lang="en",
    )


def style_sheet() -> str:
    """The palette twice, for light and dark, and what all pages have in common."""
    light, dark = ("".join(f"--{name}:{pair[theme]};" for name, pair in PALETTE.items()) for theme in (0, 1))
    themes = f":root{{{light}}}@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    return f"{themes}\n{STYLE.read_text(encoding='utf-8')}"


def _style(views: int) -> str:
    """The style sheet of a report: what switches between views behind the rest."""
    switches = ",".join(
        f".views > input:nth-of-type({n}):checked ~ .view:nth-of-type({n})" for n in range(1, views + 1)
    )
    return f"{style_sheet()}\n{switches} {{ display: block; }}"


def _subtitle(numbers: RunNumbers) -> str:
    record = numbers.record
    rows = record["data"]["rows"]
    counted = f"{rows['train']:,} training rows" if "train" in rows else "no training rows"
    return f"{record['model']['name']}, {counted}, {record['step']:,} steps, started {record['started']}"


def _figures(figures: Mapping[str, Figure], drawn: Mapping[str, Mapping[str, Pictures]], section: str) -> Markup:
    wanted = {entry.name for entry in FIGURES if entry.settings.section == section}
    return joined(_figure(name, figure, drawn[name]) for name, figure in figures.items() if name in wanted)


def _figure(name: str, figure: Figure, drawn: Mapping[str, Pictures]) -> Markup:
    switches, drawings = [], []
    for place, (view, pictures) in enumerate(drawn.items()):
        identity = f"{name}-{place}"
        if len(figure.views) > 1:
            checked = " checked" if place == 0 else ""
            switches.append(Markup(f'<input type="radio" name="{name}" id="{identity}"{checked}>'))
            switches.append(tag("label", view, for_=identity))
        alone = f'role="img" aria-label="{tag("b", f"{figure.title}: {view}")[3:-4]}"'
        widths = [
            tag("div", Markup(svg.replace("<svg ", f"<svg {alone} ", 1)), class_=width)
            for width, svg in pictures.svgs.items()
        ]
        drawings.append(tag("div", *widths, class_="view"))
    links = (tag("a", view, href=picture_name(name, figure, view)) for view in figure.views)
    files = joined([tag("a", "numbers (CSV)", href=f"{name}.csv"), " · pictures (PNG): ", joined(links, ", ")])
    return tag(
        "figure",
        tag("h3", figure.title),
        tag("figcaption", figure.caption),
        tag("div", *switches, *drawings, class_="views"),
        tag("div", files, class_="files"),
        id=f"figure-{name}",
    )


def _introduction(section: str) -> Markup:
    return tag("p", INTRODUCTIONS[section]) if section in INTRODUCTIONS else Markup("")


def _phases(numbers: RunNumbers) -> Markup:
    rows = numbers.export("phases")
    if not rows:
        return Markup("")
    columns = [
        "phase",
        "start",
        "end",
        "trains",
        "layers",
        "trainable_parameters",
        "tokens",
        "lr_mass",
        "guide_loss_drop",
    ]
    heads = [column.replace("_", " ") for column in columns]
    return joined([tag("h3", "Phases"), table(heads, ([number(row[column]) for column in columns] for row in rows))])


def _sets(numbers: RunNumbers) -> Markup:
    sets = numbers.record.get("verdict", {}).get("sources", {})
    if not sets:
        return Markup("")
    rows = [
        [name, one["change"]["n"], one["dev_loss_base"], one["dev_loss"], interval(one["change"])]
        for name, one in sets.items()
    ]
    heads = ["set", "dev rows", "base", "adapter", "change (95 % interval)"]
    return joined([tag("h3", "Dev loss of each set"), table(heads, rows)])


def number(cell: str) -> Any:
    """A cell of a CSV as the number it is, else as it stands."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _statistics(numbers: RunNumbers) -> Markup:
    blocks = []
    for measure in ("effective", "raw"):
        if measure not in numbers.summary:
            continue
        found = numbers.summary[measure]
        rows = [[group, *statistics.values()] for group, statistics in found["groups"].items()]
        ratio = found["attention_mlp_ratio"]
        blocks += [
            tag("h4", f"Norms over the run, {measure}"),
            table(["group", "mean", "std", "max", "min", "peak step"], rows),
            tag("p", f"Mean of attention over mean of MLP: {ratio:.3g}.") if ratio is not None else Markup(""),
        ]
    return joined(blocks)


def _columns(numbers: RunNumbers) -> Markup:
    columns = (numbers.ledger or {}).get("columns", {})
    if not columns:
        return Markup("")
    rows = [[name, found["rows"], found["verdict"], interval(found["auroc"])] for name, found in columns.items()]
    note = "AUROC is the chance that such a row stands lower than another; 0.5 is no difference."
    heading = tag("h3", "Do rows of a kind stand lower than the others?")
    return joined([heading, tag("p", note), table(["column", "rows", "verdict", "AUROC (95 % interval)"], rows)])


def _contamination(numbers: RunNumbers) -> Markup:
    named = (numbers.record.get("contamination") or {}).get("named")
    if not named:
        return Markup("")
    heads = ["split", "row", "the same", "training row", "share of its words"]
    rows = [[one[name] for name in ("split", "example_id", "kind", "train_example_id", "share")] for one in named]
    note = f"The first {len(named)}; tables/contamination.csv has all. Scores on such rows reward memory."
    return joined([tag("h3", "Rows that judge and were trained on"), tag("p", note), table(heads, rows)])


def _scores(numbers: RunNumbers) -> Markup:
    blocks = []
    for split, systems in splits_of(numbers).items():
        metrics = list(dict.fromkeys(name for scores in systems.values() for name in scores))
        compared = numbers.evaluation[split].get("comparison", {})
        others = list(compared)
        rows = [
            [
                metric,
                *(
                    interval(scores[metric], is_share(numbers, split, metric)) if metric in scores else ""
                    for scores in systems.values()
                ),
                *(compared[other].get(metric, {}).get("verdict", "") for other in others),
            ]
            for metric in metrics
        ]
        heads = ["metric", *systems, *(f"against {other}" for other in others)]
        blocks += [tag("h4", f"{split}, with 95 % intervals"), table(heads, rows)]
    return joined(blocks)
