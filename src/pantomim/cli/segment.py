from pantomim import verbs
from pantomim.cli.command_line import CommandLine
from pantomim.cli.finetune import train_and_score


def segment(line: CommandLine) -> None:
    """Train a segmenter from an encoder: pantomim segment DATA --encoder X --out RUN [--any.setting value].

    Examples:
        pantomim segment with_masks/ --encoder runs/first --out runs/masks
        pantomim segment with_masks/ --encoder runs/first --out runs/linear --head linear --frozen
    """
    line.options |= {"Evaluation.data": "DATA", "Segmentation.masks": "--masks", "Segmentation.ignore": "--ignore"}
    train_and_score(line, verbs.segment, "segmenter")
