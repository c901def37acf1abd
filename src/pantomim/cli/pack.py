from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, say_broken


@typed()
def pack(source: Positional[str], out: Positional[Path], size: int | None = None, quality: int | None = None) -> None:
    """Pack the images of a source into one file, to be read faster and by several processes.

    Examples:
        pantomim pack my_photos/ photos.pack --size 256

    Args:
        source: What `pretrain --data` takes.
        out: FILE.pack, then to be given as --data.
        size: Store pixels, 256 or so along the shorter side (never enlarged); by default files stay as they are.
        quality: Store these pixels as JPEG of this quality (1 to 95): smaller, and slower to read.
    """
    from pantomim.data.pack import write_pack
    from pantomim.data.sources import read_contents

    contents = read_contents(source)
    broken = write_pack(contents, source, out, size=size, quality=quality)
    say_broken(broken)
    say(f"{len(contents.store) - len(broken):,} images packed into {out}: {out.stat().st_size / 2**20:,.1f} MiB.")
