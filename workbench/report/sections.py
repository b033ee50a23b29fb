"""The report's sections as HTML: what was found in a sentence, the plot, and the table with the same numbers.

Covers the words and tables. Does not cover the plots' figures (``figures.py``), nor the page around the sections (``page.py``).
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field

from workbench.memory.forecast import fit
from workbench.memory.gpus import known
from workbench.memory.ledger import GROUPS
from workbench.quant.formats import FORMATS
from workbench.report import figures
from workbench.report.contents import HEAVIEST, Contents
from workbench.report.figures import Figure
from workbench.report.text import code, escaped, table
from workbench.sources.kinds import order_of
from workbench.surveys.rows import Row, nonfinite_summary, pooled
from workbench.surveys.scores import MEASURES
from workbench.text import NONE, amount, bracketed, count, counted, listed, memory_size, memory_size_or_none, number, percent

WORST = 15
_MOST_NAMES = 4
_MOST_LINES = 2_000
"""Lines of the longest table; a survey's CSV has them all."""


@dataclass
class Section:
    """A section: its heading, its HTML, and the figures that the page draws into it."""

    name: str
    title: str
    html: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Add a paragraph; ``text`` is HTML."""
        self.html += f"<p>{text}</p>\n"

    def plot(self, name: str, figure: Figure | None, caption: str) -> None:
        """Add a figure where there is one. The caption, plain text, is also what a screen reader gets."""
        if figure is not None:
            self.figures[name] = figure
            label, height = escaped(caption), f"height:{figure['layout']['height']}px"
            drawing = f'<div class="plot" id="{name}" role="img" aria-label="{label}" style="{height}"></div>'
            self.html += f"<figure>{drawing}<figcaption>{label}</figcaption></figure>\n"

    def fold(self, summary: str, inside: str) -> None:
        """Add a part that is folded at first."""
        self.html += f"<details><summary>{escaped(summary)}</summary>\n{inside}\n</details>\n"


def errors(c: Contents) -> Section:
    """The error by layer and kind, under each specification."""
    section = Section("errors", "Error by layer")
    rows, specs = c.measured.rows, c.specs
    scores = [c.measured.score(spec) for spec in specs]
    section.say(
        "Relative RMSE is the root mean square error of the quantized weights over the root mean square of the weights "
        "themselves; each weight counts alike."
    )
    section.html += table(
        "All tensors together, by specification",
        ("specification", "bits per weight", "size", "relative RMSE", "RMSE", "SQNR, dB", "largest error", "entropy, bits"),
        [
            (
                escaped(s.spec.title), f"{s.bits:.4f}", amount(s.nbytes), percent(s.relative_rmse, 3), number(s.rmse),
                number(s.sqnr_db, ".2f"), number(s.totals.max), number(s.totals.entropy_bits, ".3f"),
            )
            for s in scores
        ],
    )  # fmt: skip
    section.plot("layer-lines", figures.layer_lines(rows, specs), "Relative RMSE of each layer, its tensors pooled.")
    section.plot(
        "error-maps", figures.error_maps(rows, specs), "Relative RMSE by layer and kind of tensor, one map a specification."
    )
    by_kind = c.measured.grouped("kind")
    section.html += table(
        "Relative RMSE by kind of tensor",
        ("kind", "tensors", "weights", *(spec.title for spec in specs)),
        [
            (
                code(kind), str(len(group)), count(sum(row.tensor.numel for row in group)),
                *(percent(pooled([row.totals[i] for row in group]).relative_rmse) for i in range(len(specs))),
            )
            for kind, group in sorted(by_kind.items(), key=lambda item: order_of(item[0]))
        ],
    )  # fmt: skip
    lines = [(row, i) for row in rows for i in range(len(specs))]
    lines.sort(key=lambda line: -_known(line[0].totals[line[1]].relative_rmse))
    head = ("tensor", "specification", "weights", "relative RMSE", "SQNR, dB", "largest error", "kurtosis")

    def cells(chosen: list[tuple[Row, int]]) -> list[tuple[str, ...]]:
        return [
            (
                code(row.tensor.name), escaped(specs[i].title), count(row.tensor.numel), percent(row.totals[i].relative_rmse),
                number(row.totals[i].sqnr_db, ".2f"), number(row.totals[i].max), number(row.kurtosis, ".2f"),
            )
            for row, i in chosen
        ]  # fmt: skip

    section.html += table("The worst tensors", head, cells(lines[:WORST]), texts=2)
    if len(lines) > WORST:
        title = (
            f"All {len(lines):,} lines" if len(lines) <= _MOST_LINES else f"The worst {_MOST_LINES:,} of {len(lines):,} lines"
        )
        section.fold(title, table(title, head, cells(lines[:_MOST_LINES]), texts=2))
    return section


def duel(c: Contents) -> Section:
    """Formats at equal bits."""
    d = c.duel
    section = Section("duel", f"Formats at {d.bits:g} bits per weight")
    section.say(
        f"Each format in the configuration of at most {d.bits:g} bits per weight that errs least over all tensors, everything "
        "that is stored counted: codes, scales, zero points. " + " ".join(_verdicts(c))
    )
    wins = {by: d.wins(by) for by in ("tensor", "layer")}
    section.plot("duel-bars", figures.duel_bars(d), "Relative RMSE over all tensors, the least first.")
    section.html += table(
        f"Formats at no more than {d.bits:g} bits per weight",
        (
            "configuration", "bits per weight", "stored on this model", "RMSE", "relative RMSE", "SQNR, dB",
            "SQNR, each tensor alike, dB", "tensors won", "layers won",
        ),
        [
            (
                escaped(s.spec.title), f"{s.spec.bits_per_weight:.4f}", f"{s.bits:.4f}", number(s.rmse),
                percent(s.relative_rmse), number(s.sqnr_db, ".2f"), number(s.mean_sqnr_db, ".2f"),
                *(f"{wins[by][s.spec.format]:,}" for by in ("tensor", "layer")),
            )
            for s in d.ranked
        ],
    )  # fmt: skip
    if d.left_out:
        missing = [f"{escaped(FORMATS[name].title)} ({fewest:.3f} at the least)" for name, fewest in d.left_out.items()]
        section.say(f"Without a configuration so small: {listed(missing)}.")
    if sum(map(bool, wins["tensor"].values())) > 1:
        section.plot("winner-map", figures.winner_map(d), "The format that errs least on each tensor, by layer and kind.")
    section.say(
        "Tensors and layers are won on RMSE, which on the same weights ranks as SQNR does. SQNR with <em>each tensor "
        "alike</em> first scales every tensor to the same rms, so that tensors of small weights count as much as those of "
        "large ones."
    )
    return section


def _verdicts(c: Contents) -> list[str]:
    named: dict[tuple[str, ...], list[str]] = {}
    for on, label in zip(MEASURES, ("RMSE", "SQNR", "SQNR with each tensor alike"), strict=True):
        named.setdefault(c.duel.winners(on), []).append(label)
    return [
        f"On {listed(labels)}, <strong>{listed([escaped(FORMATS[name].title) for name in names])}</strong> "
        f"{'errs' if len(names) == 1 else 'err'} least."
        for names, labels in named.items()
        if names
    ]


def double_quantization(c: Contents) -> Section:
    """What quantizing the scales gains and costs."""
    section = Section("double-quantization", "Double quantization")
    s = c.savings
    summary = (
        f"QLoRA's own configuration, NF4 in blocks of 64, stores {amount(s.absmax)} of scales for this model; with the scales "
        f"quantized to 8 bits it stores {amount(s.nested)}. That saves <strong>{amount(s.saved)}</strong>, "
        f"{s.saved_bits_per_weight:.3f} bits per weight."
        f" (bitsandbytes keeps {amount(s.codebooks)} of tables besides.)"
    )
    section.say(summary if s.weights else "The model has no tensors that QLoRA would quantize.")
    section.plot(
        "double-quantization-moves",
        figures.double_quant_moves(c.duel),
        "Bits against error: from float32 scales without double quantization (circle) to the same with it (diamond).",
    )
    if c.duel.trades:
        section.html += table(
            "Double quantization, format by format",
            (
                "configuration", "bits without", "bits with", "saved on this model", "relative RMSE without",
                "relative RMSE with", "error added",
            ),
            [
                (
                    escaped(t.plain.spec.title), f"{t.plain.bits:.4f}", f"{t.double.bits:.4f}", amount(t.bytes_saved),
                    percent(t.plain.relative_rmse, 3), percent(t.double.relative_rmse, 3), percent(t.error_added, 3),
                )
                for t in c.duel.trades.values()
            ],
        )  # fmt: skip
    return section


def memory(c: Contents) -> Section:
    """The forecast by method, and which GPUs it fits."""
    section = Section("memory", "Memory of a fine-tune")
    if not c.ledgers:
        section.say(f"There is no forecast for this model: {escaped(c.no_ledgers)}")
        return section
    plan = c.ledgers[-1].plan
    section.say(
        f"Forecast, not measured: {plan.per_device_train_batch_size} rows of {plan.max_length:,} tokens, adapters of rank "
        f"{plan.lora_r} on every linear layer, one GPU. Weights, adapters, gradients and optimizer state follow from the "
        "shapes; activations, logits, scratch and context are estimates."
    )
    section.plot("memory-bars", figures.memory_bars(c.ledgers), "Forecast memory by method, stacked by what takes it.")
    titles = [ledger.title for ledger in c.ledgers]
    groups = [(escaped(group), *(memory_size_or_none(ledger.groups[group]) for ledger in c.ledgers)) for group in GROUPS]
    total = ("<strong>total</strong>", *(f"<strong>{memory_size(ledger.total)}</strong>" for ledger in c.ledgers))
    section.html += table("Forecast memory by method", ("", *titles), [*groups, total])
    section.html += table(
        "Which GPU it fits",
        ("GPU", *titles),
        [(escaped(gpu.name), *(fit(ledger, gpu).verdict for ledger in c.ledgers)) for gpu in known().values()],
        texts=len(titles) + 1,
    )
    return section


def tails(c: Contents) -> Section:
    """Kurtosis, outliers, and the blocks that they spoil."""
    section = Section("outliers", "Outliers")
    section.say(
        "Kurtosis is 3 for a normal distribution, and more with heavier tails. A weight beyond <var>k</var> σ lies more than "
        "<var>k</var> standard deviations from its tensor's mean. It stretches the scale of its block and so spoils the "
        "rounding of all the weights there; the last columns say what those blocks cost as they are, and what they would cost "
        "if the outliers were kept apart as they are, with zeros in their places."
    )
    section.plot("kurtosis-map", figures.kurtosis_map(c.measured.rows), "Kurtosis by layer and kind of tensor.")
    if c.tails:
        which = "tensor" if len(c.tails) == 1 else f"{len(c.tails)} tensors"
        sigmas = c.tails[0][1].beyond
        section.html += table(
            f"The {which} with the heaviest tails, under {bracketed(c.specs[0].title)}",
            (
                "tensor", "kurtosis", "farthest weight", "beyond", "share of weights", "blocks spoilt", "RMSE of these blocks",
                "without outliers", "RMSE of the others",
            ),
            [
                (
                    code(row.tensor.name), number(found.kurtosis, ".2f"),
                    f"{found.farthest:.1f} σ" if math.isfinite(found.farthest) else NONE,
                    f"{b.sigmas:g} σ", percent(b.share, 3), percent(b.block_share), number(b.rmse, ".5f"),
                    number(b.rmse_apart, ".5f"), number(b.rmse_others, ".5f"),
                )
                for row, found in c.tails
                for b in found.beyond
            ],
            group=(len(sigmas), 3),
        )  # fmt: skip
        normal = [f"{percent(b.normal_share, 3 if b.normal_share > 1e-5 else 7)} beyond {b.sigmas:g} σ" for b in sigmas]
        section.say(f"A normal distribution has {listed(normal)}.")
        if len(c.measured.rows) > HEAVIEST:
            section.say(f"Outliers were looked at in the {HEAVIEST} tensors of largest kurtosis; the kurtosis is known of all.")
    return section


def method(c: Contents) -> Section:
    """What was measured, with what, and the code that gives the same numbers."""
    section = Section("method", "How this was measured")
    made = c.made.strftime("%Y-%m-%d %H:%M UTC")
    versions = listed([f"{escaped(name)} {escaped(version)}" for name, version in c.versions.items()])
    section.say(
        f"Every weight of {counted(len(c.measured.rows), 'tensor')} was quantized and compared with itself, none was sampled. "
        f"Errors are x − level · scale in float32, as bitsandbytes' kernels form it. Made on {made} with {versions}."
    )
    if c.left:
        section.html += table(
            "Tensors that QLoRA leaves as they are",
            ("reason", "tensors", "weights"),
            [(escaped(reason), f"{tensors:,}", count(weights)) for reason, tensors, weights in c.left],
        )
    if c.measured.failed:
        section.html += table(
            "Tensors that could not be measured, and are in no number here",
            ("tensor", "error"),
            [(code(row.tensor.name), escaped(row.error)) for row in c.measured.failed],
            texts=2,
        )
    if summary := nonfinite_summary([c.measured.score(spec).totals for spec in c.specs]):
        section.say(escaped(summary))
    section.html += f"<h3>The same numbers in Python</h3>\n<pre><code>{_python(c)}</code></pre>\n"
    return section


def _python(c: Contents) -> str:
    names = [row.tensor.name for row in (*c.measured.rows, *c.measured.failed)]
    usual = {info.name for info in c.source.tensors() if info.quantizable}
    chosen = "" if set(names) == usual else f", tensors={names!r}" if len(names) <= _MOST_NAMES else ", tensors=names"
    lines = [
        "import workbench as wb",
        "",
        f"src = wb.open_model({c.source.name!r})",
        f"specs = [{', '.join(spec.as_code() for spec in c.specs)}]",
        f"survey = wb.survey(src, specs{chosen})",
        "survey.to_frame(), survey.worst(15), survey.by_layer(), survey.by_kind()",
        f"duel = wb.duel(src, bits={c.duel.bits:g}{chosen})",
        'duel.to_frame(), duel.to_frame("tensor"), duel.winners("rmse")',
        "wb.forecast(src, wb.TrainConfig()).to_frame()",
        *(f"wb.outliers(src.read({row.tensor.name!r}), specs[0]).to_frame()" for row in _as_stored(c)[:1]),
        f'wb.write_report(survey, "report.html", bits={c.duel.bits:g})',
    ]
    return "\n".join(html.escape(line) for line in lines)


def _as_stored(c: Contents) -> list[Row]:
    """The tensors with the heaviest tails that ``read`` gives as they were measured: neither transposed nor dequantized."""
    stored = {info.name: info for info in c.source.tensors() if info.layout == "as stored"}
    return [row for row, _ in c.tails if stored.get(row.tensor.name) == row.tensor]


def _known(value: float) -> float:
    """What is not a number counts as no error, so that it is sorted last among the worst and not first."""
    return value if math.isfinite(value) else 0.0
