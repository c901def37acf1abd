"""The size that an image is scaled to."""


def fitted_size(size: tuple[int, int], longer: int, shorter: int) -> tuple[int, int]:
    """Height and width after scaling, as large as fits in a box: whichever of the longer and shorter side is reached.

    Source: mmcv's `rescale_size`; sides are rounded half up.
    """
    scale = min(longer / max(size), shorter / min(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)
