"""Options of earlier versions that have another name now or are no more; an old command line says what to write."""

from typing import NamedTuple


class Renamed(NamedTuple):
    """An option as it was."""

    commands: tuple[str, ...]  # what the lines begin with that had it
    option: str  # with a value if that alone is meant; what follows a last dot or colon may be anything
    now: str  # what to write instead, or why there is nothing: "removed: ..."


RUN = ("pretrain", "explain", "tokenizer train")
CMT = ("pretrain cmt_mae", "explain cmt_mae")  # other methods have options of these names
ONE_MASKER = "removed: a run has one masker, and another run continues from it with --init"

RENAMED = (
    Renamed(("evaluate",), "--protocol", "evaluate linear_mae"),
    Renamed(("evaluate linear",), "--labels-per-class", "evaluate few_labels --labels-per-class"),
    Renamed(("evaluate linear",), "--draws", "evaluate few_labels --draws"),
    Renamed(("evaluate knn",), "--batch-size", "evaluate knn --chunk"),
    Renamed(("evaluate",), "--probe.", "evaluate linear --"),
    Renamed(("evaluate",), "--mae.", "evaluate linear_mae --"),
    Renamed(("evaluate",), "--attentive.", "evaluate attentive --"),
    Renamed(("evaluate",), "--patches.", "evaluate segmentation --"),
    Renamed((*RUN, "tokenizer encode"), "--tokenizer dvae:", "removed: train a tokenizer, or give dalle:FILE"),
    Renamed(RUN, "--runtime.cache", "removed: images that fit in --data.memory-gib are held in memory"),
    Renamed(RUN, "--method.masker.kind schedule", ONE_MASKER),
    Renamed(RUN, "--method.masker.stages", ONE_MASKER),
    Renamed(RUN, "--method.decoder-form", "removed: the decoder is MAE's; pretrain milan has MILAN's"),
    Renamed(RUN, "--method.decoder-input", "removed: --method.target.kind concat predicts both features"),
    Renamed(RUN, "--method.positions", "removed: the masked patches are predicted"),
    Renamed(CMT, "--method.predict-class", "removed: pretrain milan also predicts the class token"),
    Renamed(RUN, "--method.shared-head", "removed: --method.target.kind concat has one head for both features"),
    Renamed(RUN, "--method.target-mode", "--method.target.kind"),
    Renamed(CMT, "--method.normalise", "--method.target.normalise"),
    Renamed(CMT, "--method.distance.", "--method.target.distance."),
    Renamed(RUN, "--method.mixing.stage-mode joint", "--method.mixing.warmup-share 0"),
    Renamed(RUN, "--method.mixing.stage-mode", "--method.mixing.warmup-share"),
    Renamed(RUN, "--method.mixing.mask-teacher-weight", "--method.mixing.teacher-weight"),
    Renamed(RUN, "--method.mixing.target-teacher-weight", "--method.target.teacher-weight"),
)


def check_renamed(words: list[str]) -> None:
    """Raise ValueError for the first option that has another name now, or is no more."""
    line = " ".join(words)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        name = name.replace("_", "-")
        for old in RENAMED:
            text, begins = f"{name} {value or following}", old.option.endswith((".", ":"))
            if line.startswith(old.commands) and (
                text.startswith(old.option) if begins else old.option in (name, text)
            ):
                tail = name.removeprefix(old.option) if old.option.endswith(".") else ""
                now = old.now if old.now.startswith("removed") else f"now {old.now}{tail}"
                raise ValueError(f"{words[0]} {old.option}{tail} is {now}.")
