"""`data`: which rows train, which judge, and how they are drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import FILE_NAME, Count, Section, Share, Text, setting


class RowsSettings(Section):
    """Rows of one kind: where they lie, and how they are read."""

    name: Text | None = setting(
        None,
        why="a known dataset brings its columns, prompt wording, splits and group key",
        benefit="results can be set beside those that others published on it",
        cost="downloaded once, unless `path` says where its files lie",
    )
    """A known dataset (`ghosttune show datasets`); with `path`, where its files already lie. Or a hub id: `org/name`,
    `org/name:configuration`, with `@revision` behind it to pin what it holds."""
    path: Text | None = setting(
        None,
        critical=True,
        why="nothing is learned but what these rows say",
        benefit="your own task, in the words your users will meet",
        cost="all rows are read, checked and encoded before the first update",
    )
    """Your own file or folder (JSONL, JSON, CSV, TSV, Parquet, text; gzip too), or `builtin:rows`."""
    format: Literal[
        "auto",
        "text",
        "prompt_completion",
        "messages",
        "alpaca",
        "labelled_text",
        "labelled_pair",
        "tagged_tokens",
        "question_answering",
        "preference",
        "unpaired_preference",
    ] = setting(
        "auto",
        why="the same columns can be meant in several ways",
        benefit="naming it turns a file of another shape into an error instead of a wrong guess",
        cost="`auto` looks at the columns of every row before it decides",
    )
    """How the columns are meant; `auto` is detected from the columns of all rows, and reported."""
    columns: dict[Text, Text] | None = setting(
        None,
        why="files come with column names of their own",
        benefit="rows are used as they are, without editing the file",
        cost="a column that is not named here is kept beside the row and never shown to the model",
    )
    """Needed column -> your column, such as {prompt: question, completion: answer}."""
    limit: Count | None = setting(
        None,
        unit="rows",
        why="a first try needs fewer rows than the whole file",
        benefit="a fixed sample drawn by row id, not the first rows of the file: the same in every run",
        cost="what the rows left out would have taught",
    )
    """Use only this many rows."""


SourceName = Annotated[str, Field(pattern=FILE_NAME)]


class MixedSettings(RowsSettings):
    """One source of a mixture."""

    weight: Annotated[float, Field(gt=0, le=1e6)] | None = setting(
        None,
        unit="share, beside the weights of the other sources",
        why="how many rows a source happens to have need not be how much it should count",
        benefit="the number of its rows in an epoch is exact, and comes out the same in every run",
        cost="a source drawn more often than it has rows is learned by heart sooner, one drawn less often later",
    )
    """How much of an epoch is rows of this source; an epoch has as many rows as all sources together."""
    repeat: Count = setting(
        1,
        unit="times",
        why="a few good rows can deserve more than one look beside many",
        benefit="every row of the source comes exactly so often in each epoch",
        cost="an epoch is longer by these rows, which are learned by heart sooner",
    )
    """How often an epoch goes through all rows of this source."""


class SourceSettings(RowsSettings):
    keep: Text | None = setting(
        None,
        why="selecting rows is a claim that has to be tried by training on them",
        benefit="the rows that judge stay the same, so that selections can be compared with each other and with none",
        cost="fewer rows: the same number of updates passes over them more often",
    )
    """Train only on the rows whose ids stand in this file, such as `ghosttune select` writes."""
    patch: Text | None = setting(
        None,
        why="a wrong row is found after a run, and the data may be somebody else's, or large",
        benefit="drops, edits, repeats, flags and adds rows, and leaves the data and the rows that judge as they are",
        cost="a file to keep: a run cannot be opened or resumed without the patch it was started with",
    )
    """File of changes to the rows that train, a line of JSON per row: `example_id` with `drop`, `edit`, `weight` or
    `flag`, or a row to `add`."""
    sources: dict[SourceName, MixedSettings] | None = setting(
        None,
        why="what a model is to do usually takes rows of several kinds, from several files",
        benefit="each kind keeps its own columns and its own limit, and has its own dev loss and values",
        cost="ids begin with the name of their source, so that they are others than those of the source alone",
    )
    """In place of one source, several: name of your own -> settings of that source. Each row has its source's name in
    front of its id, and in the column `source`."""

    temperature: Annotated[float, Field(ge=1e-3, le=1e6)] | None = setting(
        None,
        why="the largest source would fill the run, and equal shares would repeat the smallest many times",
        benefit="one number between the two: 1 takes sources by their rows, the higher it is the more equally",
        cost="small sources are gone through more often than large ones",
    )
    """In place of weights: a source's share of an epoch is in proportion to its rows to the power 1 / temperature."""
    streaming: bool = setting(
        False,
        why="some data are larger than the disk that rows and tokens would be kept on, or than the time to read it all",
        benefit="memory and disk hold one window of rows, and training begins when the first one is read",
        cost="what needs all rows (epochs, samples, fractions set aside, duplicates, an index) cannot be had, and rows "
        "that cannot be used are met when their turn comes",
    )
    """Read the rows while the run goes on. `path` may then be a pattern of files such as `shards/*.jsonl.gz`, or `name`
    a hub id; `train.max_steps`, a file of dev rows and (with a ledger) one of guide rows have to be given."""
    shuffle_buffer: Count = setting(
        10_000,
        unit="rows",
        why="rows that stand together in a file are often alike",
        benefit="the larger the window, the further a row can come from its place",
        cost="disk for so many rows, and the wait at its beginning while they are tokenised",
    )
    """Rows of a stream that are shuffled together, a window. Shards come in another order in each pass."""

    @property
    def parts(self) -> dict[str, RowsSettings]:
        """Setting -> each source that is read: `data.train` itself, or those of a mixture."""
        if self.sources is None:
            return {"data.train": self}
        return {f"data.train.sources.{name}": part for name, part in self.sources.items()}

    @property
    def described(self) -> str:
        """What is read, in a few words."""
        return self.name or self.format if self.sources is None else f"a mixture of {', '.join(self.sources)}"


class DevSettings(Section):
    fraction: Share | None = setting(
        None,
        unit="share of rows",
        why="the rows trained on cannot tell whether anything was learned",
        benefit="checkpoints are chosen, and the verdict reached, by rows the model has not seen",
        cost="these rows are not trained on",
    )
    """Share of the training rows set aside, drawn by group so that duplicates never straddle."""
    split: Text | None = setting(
        None,
        why="whoever made the data may have said which rows judge",
        benefit="your numbers are of the same rows as other people's",
        cost="its size is what it is: many rows make every evaluation slow, see `data.dev.limit`",
    )
    """A split the source itself has, such as `dev`."""
    path: Text | None = setting(
        None,
        why="the rows that judge may come from elsewhere, or later, than those that teach",
        benefit="all training rows train, and the verdict is about the rows you care for",
        cost="another file to keep; rows it shares with the training rows make the verdict too good",
    )
    """A file of its own, in the same format as the training rows."""
    sources: dict[SourceName, RowsSettings] | None = setting(
        None,
        why="one number hides that an adapter has gained on one kind of rows and lost on another",
        benefit="every evaluation tells the dev loss of each set, and the verdict its change with an interval",
        cost="all of them are forward passes at each evaluation; the loss of all together chooses the checkpoint",
    )
    """Several dev sets, in place of one: name of your own -> settings of its source, one file or dataset. Each row has
    its set's name in front of its id."""
    limit: Count | None = setting(
        None,
        unit="rows",
        why="an evaluation should not take longer than the training between two of them",
        benefit="time: every dev row is a forward pass at each evaluation",
        cost="fewer rows make wider intervals",
    )
    """Use only this many dev rows, a fixed sample drawn by row id."""

    @property
    def parts(self) -> dict[str, RowsSettings]:
        """Setting -> each of the dev sets."""
        return {f"data.dev.sources.{name}": part for name, part in (self.sources or {}).items()}


class GuideSettings(Section):
    fraction: Share | None = setting(
        None,
        unit="share of rows",
        why="the ledger needs the gradient of rows that nobody trains on",
        benefit="drawn where the source has no split for it, and never among the dev rows",
        cost="training has that many rows fewer",
    )
    """Share of the training rows that give the held-out gradient, drawn as the dev rows are."""
    split: Text | None = setting(
        None,
        why="which rows stand for what you want may be known beforehand",
        benefit="the ledger answers for exactly those rows, such as a rare skill",
        cost="the account is only about what these rows ask for",
    )
    """A split the source itself has, such as `guide`; the default where there is one, else a fraction of 0.05."""
    rows: Count | None = setting(
        None,
        unit="rows",
        why="the guide gradient is a mean over these rows",
        benefit="more rows make the held-out gradient less noisy",
        cost="each guide pass runs them all",
    )
    """Exactly this many, drawn from `split` or `path` where one is given, else from the training rows."""
    path: Text | None = setting(
        None,
        why="the rows that stand for what you want may have been written for that",
        benefit="all training rows train, and the ledger answers for rows of your choice",
        cost="another file to keep; none of its prompts may stand among the rows that train or choose checkpoints",
    )
    """A file of guide rows, in the same format as the training rows."""


class OnlineSelectionSettings(Section):
    by: Literal["value", "loss", "gradient_norm", "random"] | None = setting(
        None,
        why="of many rows that could train, some lower the guide loss more than others",
        benefit="`value` trains those first; the others are its controls",
        cost="a pass over every candidate: with 4 per row a step takes about three times as long; null for off",
    )
    """What the candidates of a step are chosen by: `value` (what the ledger would credit them with), their loss per
    target, the norm of their gradient, or a draw."""
    candidates: Annotated[int, Field(ge=2)] = setting(
        4,
        unit="candidates per trained row",
        why="a choice needs something to choose from",
        benefit="the more there are, the better the best of them",
        cost="the more, the more alike are those that are kept, and the longer a step takes",
    )
    """Rows that are looked at for each row that trains; a step trains as many rows as without selection."""
    lowest: bool = setting(
        False,
        why="a high loss can mean that a row is hard, or that it is wrong",
        benefit="rows of low loss or short gradients are those that are not mistakes",
        cost="nor do they teach much that the model does not know",
    )
    """Keep the lowest scores in place of the highest."""

    @property
    def offered(self) -> int:
        """Rows that a step takes from the data for each row it trains."""
        return 1 if self.by is None else self.candidates


class MixtureSettings(Section):
    by: Literal["guide", "odm", "doremi"] | None = setting(
        None,
        why="what a source is worth beside the others is seldom known before it was trained on, and changes meanwhile",
        benefit="rows come from the sources that lower the guide loss, or whose own loss is still high; each change "
        "is recorded",
        cost="`guide` follows the guide rows, whatever else they leave out; `odm` may follow what cannot be learned; "
        "`doremi` needs a run before it; null for off",
    )
    """What the weights of `data.train.sources` are learnt from while the run goes on: `guide`, what rows of each source
    did to the guide loss (exponentiated gradient); `odm`, their training loss (online data mixing, an EXP3 bandit);
    `doremi`, what of their loss a reference run shows can still be learned (`reference_losses`)."""
    every: Count = setting(
        10,
        unit="optimizer updates",
        why="one update has too few rows to tell what a source is worth",
        benefit="fewer updates let the weights move sooner",
        cost="fewer rows of each source tell less, so that the weights follow chance",
    )
    """Change the weights after every so many updates."""
    floor: Annotated[float, Field(gt=0, le=1)] = setting(
        0.1,
        unit="share of rows",
        why="a source that no row comes from any more can never show that it has become useful",
        benefit="every source goes on being looked at, and a wrong start can be mended",
        cost="so many rows come from all sources alike, useful or not",
    )
    """Of the rows, the share that all sources have in equal parts, whatever is learnt."""
    reference_losses: Text | None = setting(
        None,
        why="how far a loss can be lowered differs from source to source, and only a trained model tells",
        benefit="sources whose rows are hard for any model draw no more rows than others",
        cost="a run before this one; a row without a loss is an error",
    )
    """The loss per target of each training row under a run on the same sources, for `doremi`: a file of rows with
    `example_id` and `score`, as `ghosttune select RUN --by loss --above 0 --out FILE` writes."""


class DataSettings(Section):
    train: SourceSettings = SourceSettings()
    mixture: MixtureSettings = MixtureSettings()
    """The weights of `data.train.sources` change while the run goes on; null for off."""
    dev: DevSettings = DevSettings()
    guide: GuideSettings = GuideSettings()
    """Rows that give the held-out gradient of the ledger: not trained on, and not those that choose checkpoints."""
    online_selection: OnlineSelectionSettings = OnlineSelectionSettings()
    """At every step, the best of several candidates train; null for off."""
    template: Literal["auto", "chat", "plain", "turns"] = setting(
        "auto",
        why="a model answers only prompts that look as those it was trained on",
        benefit="one template renders training rows, evaluation prompts and chat alike",
        cost="the marks of a turn take tokens in every row",
    )
    """`chat`: the tokenizer's own; `plain`: prompt, then completion; `turns`: `User: …` / `Assistant: …` lines.
    `auto` is `chat` where the tokenizer has a chat template, else `turns` for messages and `plain` for the rest."""
    max_length: Annotated[int, Field(ge=8)] = setting(
        512,
        unit="tokens",
        critical=True,
        why="bounds what one row can take; too short a limit refuses rows, or cuts their context",
        benefit="a batch of long rows cannot exhaust the memory in the middle of a run",
        cost="memory and time grow with the longest row of a batch",
    )
    """Longest row; longer ones lose the oldest part of their context, never the answer or its cue."""
    loss_on: Literal["completion", "last_turn", "all"] = setting(
        "completion",
        why="a prompt is given, an answer has to be produced",
        benefit="with `completion` the adapter does not spend itself on learning to write prompts",
        cost="`all` trains more tokens per row, which text without answers needs",
    )
    """Which tokens are trained: those the model must produce (with their stop token), of those the last answer of a row
    alone, or all. Answers whose own row says `weight: 0` or `train: false` never are."""
    truncated_share: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0,
        unit="share of rows",
        why="a row whose context was cut may ask for what it no longer says",
        benefit="0 refuses instead of training on cut rows unnoticed; answers are never cut",
        cost="every row above `data.max_length` has to be dealt with before the run starts",
    )
    """Refuse to train when a larger share of rows would have to be cut."""
