"""A teacher's features stand for the student's patches: its input is resized until the two grids are the same."""

from dataclasses import replace

from pantomim.formats.wrapped import WrappedEncoder
from pantomim.nn.resize import adapted_encoder
from pantomim.nn.vit import Encoder, EncoderConfig


def fit_encoder(encoder: Encoder, student: EncoderConfig, name: str, *, students_statistics: bool = False) -> Encoder:
    """The encoder for inputs that give the student's grid; its tables of positions are resampled where needed.

    `students_statistics`: it standardises images as the student does, not as it was trained.
    """
    check_channels(name, encoder.in_chans, student)
    image_size = (student.grid[0] * encoder.patch_size, student.grid[1] * encoder.patch_size)
    config = replace(encoder.config, image_size=image_size)
    if students_statistics:
        config = replace(config, mean=student.mean, std=student.std)
    return encoder if config == encoder.config else adapted_encoder(encoder, config)


def fit_wrapped(
    encoder: WrappedEncoder, student: EncoderConfig, *, students_statistics: bool = False
) -> WrappedEncoder:
    """The same of a network of another library; a ValueError, if it cannot have this grid."""
    check_channels(encoder.source, encoder.in_chans, student)
    (rows, cols), (height, width) = student.grid, encoder.stride
    fitted = encoder if encoder.grid == student.grid else encoder.resized((rows * height, cols * width))
    if fitted.grid != student.grid:
        raise ValueError(
            f"Teacher.grid must be the student's {rows} x {cols}; got {fitted.grid[0]} x {fitted.grid[1]} of "
            f"{encoder.source} at {fitted.image_size[0]} x {fitted.image_size[1]}. Choose a plain vision transformer."
        )
    if students_statistics:
        fitted.standardise_by(student.mean, student.std)
    return fitted


def check_channels(name: str, in_chans: int, student: EncoderConfig) -> None:
    """Raise a ValueError unless a teacher takes the channels that the student takes."""
    if in_chans != student.in_chans:
        raise ValueError(
            f"Teacher.in_chans must be the student's {student.in_chans}; got {in_chans} channels of {name}. "
            f"Choose a teacher that was trained on such images: random, ema, or a run on this data."
        )
