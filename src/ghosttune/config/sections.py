"""The sections that every run has: each setting with its type, unit, bounds, one line of meaning, why it is there, what
it gives and what it costs. A key is here only if it changes what a run does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import (
    ATTENTION,
    DEVICE,
    FILE_NAME,
    TEMPLATE,
    VARIABLE,
    Count,
    Names,
    Section,
    Share,
    Text,
    setting,
)

MARKS = ("{{", "{%")
"""What makes a text a Jinja template: a file's name has none of them."""


class ModelSettings(Section):
    name: Text = setting(
        "builtin:tiny",
        critical=True,
        why="decides everything else: tokenizer, template, module names",
        benefit="what the base can do already need not be learned from your rows",
        cost="memory and time of every step grow with its parameters",
    )
    """Hub id, local folder, or `builtin:tiny` (ships with the package)."""
    init: Literal["pretrained", "random"] = setting(
        "pretrained",
        why="tuning builds on what pretraining left in the weights",
        benefit="`random` measures what pretraining contributed",
        cost="random weights know no language: expect to train far longer, with `full`",
    )
    """`pretrained` loads the weights; `random` takes only the shape and draws weights from `train.seed`."""
    revision: Text | None = setting(
        None,
        why="the same name can hold other weights tomorrow",
        benefit="a run can be repeated with the very weights it had",
        cost="later corrections of the repository do not reach you",
    )
    """Branch, tag or commit of a hub id; the resolved commit is recorded."""
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        critical=True,
        why="what the base computes in; float32 rounds least and runs everywhere",
        benefit="bfloat16 halves the weights' memory; adapters stay float32",
        cost="bfloat16 keeps 8 significant bits, and a CPU may compute it slower",
    )
    """Precision of the base weights."""
    quantization: Literal["none", "int8", "nf4"] = setting(
        "none",
        why="the frozen base only has to be read, not trained",
        benefit="a larger base in the same memory: int8 a quarter, nf4 an eighth of float32",
        cost="the base's numbers are rounded, and each step is slower",
    )
    """Bits the base's linear layers are kept in (`pip install 'ghosttune[quant]'`); adapters stay float32."""
    device: Annotated[str, Field(pattern=DEVICE)] = setting(
        "auto",
        critical=True,
        why="`auto` is resolved once, printed and recorded; the others are never changed silently",
        benefit="a run moves between machines without an edit, and still says where it ran",
        cost="the CPU is slow, and gives the same bytes each time; kernels of a GPU need not",
    )
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    attention: Annotated[str, Field(pattern=ATTENTION)] | None = setting(
        None,
        why="how tokens look at each other decides the time and memory of long rows, and nothing else",
        benefit="FlashAttention and sdpa keep no weight for each pair of tokens; FlashAttention skips what is masked",
        cost="all but eager and sdpa need a GPU; sums are made in another order, so that last bits differ",
    )
    """What computes attention, by Transformers' names (`attn_implementation`): `eager`, `sdpa`, `flex_attention`,
    `flash_attention_2`, or a kernel of the hub; null for what Transformers takes for the model."""
    chat_template: Annotated[str, Field(pattern=TEMPLATE)] | None = setting(
        None,
        why="a base model has no chat template, and a model's own may write no tools or not say what it trains",
        benefit="training, preview, chat, serve and what is merged from the run write conversations as you say",
        cost="an instruction-tuned model has learned its own marks, and has to learn others anew",
    )
    """File of the Jinja template that writes conversations, in place of the model's own; the run keeps its text. Or the
    text itself; null for the model's own. It is rendered within bounds and reaches nothing of this machine."""
    trust_remote_code: bool = setting(
        False,
        why="runs Python code that comes with the model; off unless you read it",
        benefit="models that Transformers does not know can be loaded",
        cost="that code can do whatever you can do on this machine",
    )
    """Whether code shipped inside a model repository may run."""


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


Optim = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_32bit",
    "lion_8bit",
    "adafactor",
    "muon",
    "schedule_free_adamw",
    "sgd",
]
ADAMW = ("adamw_torch_fused", "adamw_torch")
"""Optimizers whose states the ledger reads."""


class TrainSettings(Section):
    max_steps: Count | None = setting(
        300,
        unit="optimizer updates",
        critical=True,
        why="too few and the rows are not learned, too many and they are learned by heart",
        benefit="the best step is kept, so that a run that is too long loses time and not quality",
        cost="time grows in proportion",
    )
    """Optimizer updates; or give `num_train_epochs`."""
    num_train_epochs: Annotated[float, Field(gt=0)] | None = setting(
        None,
        unit="passes over the training rows",
        why="rows are what you have; updates follow from them and the batch",
        benefit="the length of the run follows when rows are added",
        cost="the number of updates changes with the batch, and arms of a comparison with it",
    )
    """Passes over the training rows, instead of `max_steps`."""
    per_device_train_batch_size: Count = setting(
        8,
        unit="rows",
        critical=True,
        why="every update is a mean over the rows of its batch",
        benefit="more rows make an update less noisy, and use a device better",
        cost="activation memory grows with it",
    )
    """Rows of one micro-batch on one device."""
    per_device_eval_batch_size: Count = setting(
        32,
        unit="rows",
        why="evaluating keeps no activations for a backward pass, so that more rows fit",
        benefit="evaluations take less time on a device that has room",
        cost="memory of one forward pass of so many rows",
    )
    """Rows of one evaluation batch; the numbers do not depend on it."""
    gradient_accumulation_steps: Count = setting(
        1,
        unit="micro-batches",
        why="a batch that does not fit at once can be summed up from parts",
        benefit="the update of a large batch in the memory of a small one",
        cost="a step takes that many times longer",
    )
    """Micro-batches per optimizer update; the loss is weighted by tokens, so the split does not matter."""
    group_by_length: bool = setting(
        False,
        why="rows of a step are padded to the longest of them",
        benefit="true: hardly any computing on padding, which large models and long rows feel",
        cost="true: kinds of rows that differ in length meet in steps of their own, and a rare kind is learned slowly",
    )
    """Steps of rows of like length; else of rows as they are drawn."""
    order: Literal["random", "length", "loss", "value"] = setting(
        "random",
        why="what is easy first, or what is worth most, is said to be learned better; a draw is the control",
        benefit="a curriculum that is exact, recorded, and the same in every process",
        cost="each pass has the same order and kinds of rows meet in steps of their own; `loss` reads every row once",
    )
    """Order of the training rows in each pass: drawn anew; or sorted, the smallest first, by the tokens of a row, its
    loss per target under the untouched base, or what it stands at in the ledger of an earlier run (`order_scores`)."""
    order_descending: bool = setting(
        False,
        why="both directions have their advocates",
        benefit="the hard, or the worthy, come first",
        cost="what comes last is what the run remembers best",
    )
    """The largest first."""
    order_scores: Text | None = setting(
        None,
        why="how hard or worthy a row is can be known from elsewhere",
        benefit="an order by whatever scores rows, such as `ghosttune select --by` writes",
        cost="a row without a score is an error",
    )
    """Where scores come from: a finished run (its values), or a file of rows with `example_id` and `score`."""
    packing: bool = setting(
        False,
        why="rows of unequal length leave room beside the short ones, which is computed all the same",
        benefit="the same updates from the same rows, faster: 1.5 times on dialogues that are not grouped by length",
        cost="one pass of a few rows before training, which refuses models whose rows would see each other",
    )
    """Several rows of a micro-batch in one sequence, none of which sees the others; `task.type: causal_lm`."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = setting(
        2.0e-4,
        critical=True,
        why="how far each update goes; LoRA wants about 10x full training's",
        benefit="the first setting to try when a run does not learn, and the one that changes most",
        cost="too low wastes the run, too high destroys it: try three values before anything else",
    )
    """Peak learning rate of the optimizer."""
    optim: Optim = setting(
        "adamw_torch_fused",
        why="AdamW keeps two numbers for each that trains, which full training feels in memory",
        benefit="a quarter of that in 8 bits, Muon's half, next to nothing for Adafactor and plain steps",
        cost="values and credits of rows are told of AdamW's own step in torch: with any other the ledger must be off",
    )
    """The optimizer, by Transformers' name; `muon` is torch's, with steps as large as AdamW's (Liu et al. 2025, arXiv
    2502.16982)."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = setting(
        "cosine",
        why="large steps find a good region, small ones settle in it",
        benefit="a curve that falls ends where the weights no longer jump about",
        cost="a run that is made longer later has another curve from the start",
    )
    """Shape of the learning-rate curve after warm-up, over the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)] = setting(
        10,
        unit="optimizer updates",
        why="AdamW knows nothing of the gradients' sizes in its first updates",
        benefit="the first updates cannot throw the weights far away",
        cost="so many updates learn less than they could",
    )
    """Updates over which the learning rate rises to its peak; must be fewer than the run has."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0,
        why="weights that nothing asks for can be drawn back to zero",
        benefit="may keep a long run from learning rows by heart; unknown here, no study varies it",
        cost="pulls against what is learned; the ledger books it as a term of its own",
    )
    """Decoupled weight decay on the trained matrices (biases and norms are exempt)."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.9,
        why="an update follows a mean of the last gradients, not the newest alone",
        benefit="noise of single batches averages out",
        cost="higher values answer later to a change, and credit more of an update to older rows",
    )
    """Decay of the first moment of AdamW, or of Lion."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.999,
        why="AdamW divides each number's step by the size of its last gradients",
        benefit="lower values adapt sooner, which short runs can need",
        cost="too low, and single batches decide how large steps are",
    )
    """Decay of AdamW's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = setting(
        1.0e-8,
        why="keeps the step finite where gradients are all but zero",
        benefit="larger values leave numbers in peace whose gradients are only noise",
        cost="too large, and AdamW turns into plain gradient steps",
    )
    """Added to the root of AdamW's second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = setting(
        1.0,
        why="a rare row can have a gradient many times the usual one",
        benefit="one bad batch cannot throw the run away",
        cost="where it binds often, it is a smaller learning rate in disguise; values count the factor",
    )
    """Gradients with a larger norm are scaled down to it; 0 turns clipping off."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = setting(
        42,
        critical=True,
        why="the same seed gives the same run",
        benefit="another one shows how much of a result is chance",
        cost="a claim about a setting needs several seeds, each a run of its own",
    )
    """Seeds splits, samples, row order, adapter initialisation and dropout."""
    logging_steps: Count | None = setting(
        None,
        unit="optimizer updates",
        why="the training loss is the first sign of a run that goes wrong",
        benefit="short intervals show the curve as it was, long ones a smoother mean",
        cost="one line of `metrics.jsonl` each, and the loss is read back from the device",
    )
    """Interval of training-loss records; unset: a fiftieth of the run."""
    eval_steps: Count | None = setting(
        None,
        unit="optimizer updates",
        why="the loss of training rows says nothing of rows that were not seen",
        benefit="more evaluations find the best step more exactly, and stop a useless run sooner",
        cost="one forward pass over the dev rows each",
    )
    """Interval of dev evaluations; unset: a tenth of the run."""
    save_steps: Count | None = setting(
        None,
        unit="optimizer updates",
        why="what was trained since the last checkpoint is lost when the machine fails",
        benefit="a killed run goes on from here, to the same bytes",
        cost="writing weights, optimizer and instruments each time",
    )
    """Interval of checkpoints to resume from; unset: as `eval_steps`. A new best evaluation is saved as well."""
    save_total_limit: Count = setting(
        2,
        unit="checkpoints",
        why="old checkpoints fill the disk",
        benefit="more stages of learning to ask afterwards (`ghosttune index --checkpoint all`)",
        cost="disk: about three times the adapter each",
    )
    """Newest checkpoints kept; the best one is kept besides."""
    early_stopping_patience: Count | None = setting(
        None,
        unit="evaluations",
        why="once dev rows get worse, more updates learn the training rows by heart",
        benefit="saves the time that remains; the best step is kept with or without it",
        cost="a loss that rises before it falls again is missed",
    )
    """Stop after this many dev evaluations in a row that did not improve on the best."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = setting(
        0.0,
        unit="nats per target",
        why="an improvement smaller than the noise of the dev rows is none",
        benefit="a run that only creeps on is ended",
        cost="slow learning is taken for none where it is set too high",
    )
    """How much lower the dev loss must be to count as an improvement for early stopping."""
    activation_checkpointing: bool = setting(
        False,
        why="activations kept for the backward pass are most of the memory of long rows",
        benefit="longer rows or larger batches in the same memory",
        cost="each layer is computed once more: about a third more time",
    )
    """Recompute activations in the backward pass (non-reentrant)."""

    @property
    def rows_per_step(self) -> int:
        """Rows that one process trains in one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class NormsSettings(Section):
    every: Count | None = setting(
        1,
        unit="optimizer updates",
        why="a gradient's norm tells a vanishing, an exploding and a frozen module apart",
        benefit="curves for every module of every run, without having asked beforehand",
        cost="under 2 % of a step; null for off",
    )
    """Record the gradient's norms, complete and before clipping, at the first update and every so many after it."""
    layers: bool = setting(
        True,
        why="groups of modules can hide what a single layer does",
        benefit="maps of layer by step, and the CSV file with a column per layer",
        cost="a row per module and step on disk instead of one per group",
    )
    """One norm per module and factor (and the file of norms per layer); else one per group."""
    effective: Count | None = setting(
        10,
        unit="optimizer updates",
        why="the adapter's own norms change with r and alpha, these do not",
        benefit="modules, ranks and methods can be compared by how much the loss asks of them",
        cost="one weight gradient per adapted module on measured steps, in time and memory; null for off",
    )
    """Interval of effective norms: the gradient norm of each adapted weight itself."""


class LedgerSettings(Section):
    guide_every: Count | None = setting(
        10,
        unit="optimizer updates",
        why="what a row or module did is judged by the gradient of the guide rows",
        benefit="1 makes the account exact to second order; larger values approximate curvature",
        cost="one forward and backward pass over the guide rows each; null for off",
    )
    """Take the held-out gradient anew every so many updates."""
    guide_subset: Annotated[int, Field(ge=4)] | None = setting(
        None,
        unit="rows",
        why="a guide pass need not see all rows to be right on average",
        benefit="many guide rows at the price of few, and a standard error for every module",
        cost="one more copy of the trained parameters; each guide gradient is noisier",
    )
    """Guide passes see at most this many guide rows each, in subsets that take turns."""
    values: Literal["removal", "adamw", "sgd"] = setting(
        "removal",
        why="without a row the clip factor and the optimizer's v̂ are others too, which changes what all other rows do",
        benefit="`removal` is what the guide loss would have been after the step without the row",
        cost="`adamw` holds clip factor and v̂ fixed, and `sgd`, which others publish, knows neither",
    )
    """What a row's value is of: the real step without the row, AdamW's step with all else fixed, or a plain gradient
    step. A row's credit, by which the account closes, does not depend on it."""


class MeasureSettings(Section):
    norms: NormsSettings = NormsSettings()
    """Gradient norms; null for off."""
    ledger: LedgerSettings = LedgerSettings()
    """Which modules and which rows lowered the guide loss; null for off."""
    unsupported: Literal["exact", "leave_out", "refuse"] = setting(
        "exact",
        why="a row's gradient costs next to nothing where a rule for the layer gives it, and not every layer has one",
        benefit="`exact` measures any layer, and `leave_out` keeps the speed of those that have a rule",
        cost="`exact`: such layers run once more, backward once per row; `leave_out`: no row is credited with them",
    )
    """What is done with trained parameters whose layer has no rule for the gradients of single rows: measure them
    exactly, leave them out (counted and named), or refuse the run. `ghosttune check` says which they are."""


class ForgetSettings(Section):
    run: Text | None = setting(
        None,
        why="what single rows taught may have to go: a person's data, a secret, an answer that was wrong",
        benefit="a fraction of the time of training anew without them",
        cost="only training without the rows is sure: beside it this is judged (`ghosttune forget --retrain`)",
    )
    """Start from the best adapter of this run, and make it forget some of its rows; null for off."""
    rows: Text | None = setting(
        None,
        why="what is to be forgotten is rows of the run that taught it",
        benefit="the same file as for `data.train.keep`, such as `ghosttune select` or `attribute` helps to make",
        cost="what rows that stay say of the same thing stays too: name those as well",
    )
    """File of the ids of the rows to forget: one in each line of a .txt file, else the `example_id` of each row."""
    loss: Literal["npo", "gradient_ascent"] = setting(
        "npo",
        why="a loss that is only raised knows no end, and takes the rest of the model with it",
        benefit="`npo` pushes less the further a row is forgotten; `gradient_ascent` is what it is compared with",
        cost="npo reads every row that is forgotten once more, before the first update",
    )
    """What the rows to forget are trained with: negative preference optimization (Zhang et al. 2024, arXiv 2404.05868),
    whose reference is the adapter at the start, or the loss of training with its sign turned."""
    beta: Annotated[float, Field(gt=0)] = setting(
        0.1,
        unit="per nat of a row",
        why="says how far a row is forgotten before it is left alone",
        benefit="higher stops sooner, lower comes near gradient ascent",
        cost="too high, and rows of many tokens hardly move",
    )
    """npo: inverse temperature."""
    retain: Text | None = setting(
        None,
        why="which rows must not suffer may be known, such as those most like the forgotten ones",
        benefit="exactly these are held on to",
        cost="what none of them asks for may go unnoticed",
    )
    """File of the ids of rows to hold on to, in place of a sample; read as `rows` is."""
    retain_rows: Annotated[int, Field(ge=0)] | None = setting(
        None,
        unit="rows",
        why="what makes rows forgotten also moves what all others use",
        benefit="more rows hold on to more of what was learned",
        cost="fewer of the rows of each update are forgotten ones; 0 holds on to nothing",
    )
    """Train a sample of so many of the run's other rows with their own loss; unset: four for each forgotten row."""
    retain_weight: Annotated[float, Field(gt=0)] = setting(
        4.0,
        why="forgetting and holding on pull at the same weights",
        benefit="higher keeps the other rows nearer to where they were",
        cost="forgetting takes more updates",
    )
    """Weight of the loss of retained rows; that of forgotten ones has 1."""
    until: Annotated[float, Field(gt=0)] | None = setting(
        None,
        unit="nats per target",
        why="rows made less likely than to a model that never saw them are told apart by just that",
        benefit="stops at the loss of a model that never saw them, where one is known",
        cost="looked at every `train.eval_steps` updates: one forward pass of the forgotten rows",
    )
    """End the run at the first evaluation at which the mean loss of the forgotten rows is as high."""


class EvaluateSettings(Section):
    metrics: Literal["auto"] | Names = setting(
        "auto",
        why="a lower loss is not yet a better answer",
        benefit="each number comes with n, an interval and its baselines",
        cost="most are of generated answers, which take time",
    )
    """Metrics of the answers (`ghosttune show metrics`), or `auto`: those of the known dataset, else `exact_match` and
    `chrf`. `stopped` always stands beside them. `path.py:function` is a function of your own of an answer (`output`,
    `references`, `metadata`: any of them) that returns a number, more being better, or whether the answer is right; it
    runs under `--allow-code` only."""
    limit: Annotated[int, Field(ge=0)] | None = setting(
        100,
        unit="prompts",
        why="generating an answer can take longer than training on it",
        benefit="more prompts make narrower intervals",
        cost="one generated answer per prompt, twice",
    )
    """Dev prompts answered at the end by the base and by the adapter; null for all, 0 for none. Rows with the same
    prompt are one, with all their references."""
    max_new_tokens: Count = setting(
        128,
        unit="tokens",
        why="a model that never stops has to be stopped",
        benefit="an answer that needs more tokens is judged whole",
        cost="base answers that do not stop take all of it, in every batch",
    )
    """Longest generated answer."""
    samples: Annotated[int, Field(ge=0)] = setting(
        0,
        unit="prompts",
        why="a loss does not say what the model writes by now",
        benefit="the report shows how the answers to these prompts changed, from the untouched base on",
        cost="so many answers are generated at every evaluation",
    )
    """Answer so many dev prompts, always the same, at every evaluation of a run; 0 for none."""
    shots: Annotated[int, Field(ge=0)] = setting(
        0,
        unit="rows",
        why="a few examples in the prompt can do what tuning does, without tuning",
        benefit="one more baseline beside the others: the untouched base that has seen so many answered training rows",
        cost="one more answer per prompt, behind a prompt that is as many times longer",
    )
    """Training rows that stand answered before each prompt of the few-shot baseline; 0 for no such baseline."""
    synonyms: Text | None = setting(
        None,
        why="METEOR without them compares words and stems only",
        benefit="an answer in other words for the same thing is not counted as wrong",
        cost="a file of your own: none is shipped, and figures with and without do not compare",
    )
    """Folder with `*synonyms.tsv` (lines of synset, tab, words) for `meteor`."""
    tables: Text | None = setting(
        None,
        why="two queries can be written differently and say the same",
        benefit="`sql_execution` compares what queries return",
        cost="the tables have to be there, and every query is run",
    )
    """File or folder of `*.tables.jsonl` in WikiSQL's form, on which `sql_execution` runs queries."""
    general_text: Text | None = setting(
        None,
        why="tuning on one task can cost what the model knew",
        benefit="shows what tuning made the model forget",
        cost="two forward passes over 16,384 tokens",
    )
    """File of general text (rows of `text`), whose loss is compared before and after."""


EVALUATION_FILES = ("evaluate.synonyms", "evaluate.tables", "evaluate.general_text")
"""Settings that name files which only an evaluation reads."""


class AlertSettings(Section):
    on: list[Literal["nan", "plateau", "worse"]] | None = setting(
        None,
        why="a run that goes wrong at night is paid for until somebody looks",
        benefit="word comes when a loss is not a number, the dev loss stops falling, or the verdict is worse",
        cost="a wrong address or command costs ten seconds at each alert; training goes on",
    )
    """What word is sent of; null: of nothing. `nan`: a loss is not a number; `plateau`: `patience` evaluations in a row
    without a new best; `worse`: the verdict at the end."""
    webhook: Annotated[str, Field(pattern=VARIABLE)] | None = setting(
        None,
        why="chat programs and pagers take messages by HTTP, at addresses that are secrets",
        benefit="a message where people look; Slack, Mattermost and Discord show it as it is",
        cost="somebody else's server hears the run's name and losses",
    )
    """Name of the environment variable that holds the address (http or https) that gets a JSON object by POST: so the
    address, which is a password, stands in no file."""
    command: Text | None = setting(
        None,
        why="whatever else should happen: mail, a desktop notice, a job that is cancelled",
        benefit="any program of the machine hears of it",
        cost="runs on your machine, so only under --allow-code; ten seconds at most",
    )
    """Shell command that is run, the message in `GHOSTTUNE_MESSAGE`, beside `GHOSTTUNE_ALERT`, `_RUN` and `_STEP`."""
    patience: Annotated[int, Field(ge=1)] = setting(
        3,
        unit="evaluations",
        why="one evaluation without progress is chance",
        benefit="word comes once for each plateau",
        cost="so many evaluations are paid for before it comes",
    )
    """Evaluations in a row without a new best before `plateau` is told."""


class RunSettings(Section):
    name: Annotated[str, Field(pattern=FILE_NAME)] | None = setting(
        None,
        why="a folder that says what was tried is found again",
        benefit="names of your own sort and read as you think of them",
        cost="a name that is taken is refused: nothing is overwritten",
    )
    """Name of the run directory below `root`; unset: data, model, method and time."""
    root: Text = setting(
        "runs",
        why="runs of a project belong together",
        benefit="a larger or shared disk, without a change to anything else",
        cost="resuming and comparing need the path where the run lies",
    )
    """Folder that holds run directories."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow", "swanlab", "comet_ml"]] = setting(
        [],
        why="metrics.jsonl is the record; trackers subscribe",
        benefit="curves of many runs on one board, while they run",
        cost="their packages; for wandb, swanlab and comet_ml an account and the network",
    )
    """External trackers that receive the same numbers, by the names of Transformers' `report_to`; each is set up by its
    own environment variables."""
