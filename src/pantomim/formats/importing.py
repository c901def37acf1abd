"""Turn a checkpoint of another project into our files."""

from dataclasses import dataclass
from pathlib import Path

from pantomim.core.scales import BYTES
from pantomim.formats.layout import Found
from pantomim.formats.native import describe_positions, save_classifier, save_decoder, save_encoder, save_predictor


@dataclass(frozen=True)
class ImportReport:
    """What an import read and wrote; as text, a few plain lines."""

    source: Path
    out: Path
    found: Found
    files: tuple[str, ...]

    def __str__(self) -> str:
        found, config, (height, width) = self.found, self.found.encoder.config, self.found.encoder.image_size
        absolute = "" if found.encoder.pos_embed is None else f"{describe_positions(found.encoder)}, as stored"
        positions = (absolute, RELATIVE.get(config.relative_position))
        lines = [
            f"{self.source} holds {found.format.owner} {found.kind}",
            f"encoder: {config.width} wide, {config.depth} deep, {config.heads} heads, patch {config.patch_size}, "
            f"{config.in_chans} x {height} x {width}",
            f"positions: {'; '.join(filter(None, positions)) or 'none'}",
        ]
        if (decoder := found.decoder) is not None:
            lines.append(
                f"decoder: {decoder.decoder_embed.out_features} wide, {len(decoder.decoder_blocks)} deep; "
                f"positions: {describe_positions(decoder)}, as stored"
            )
        lines += found.notes
        if (classifier := found.classifier) is not None:
            lines.append(f"head: {classifier.head.out_features} classes, pool {classifier.pool}")
        if found.left_out:
            lines.append(f"left out, no part of the network: {', '.join(found.left_out)}")
        return "\n".join([*lines, f"wrote {', '.join(self.files)} to {self.out}"])


RELATIVE = {"shared": "relative, one table shared by the blocks", "blocks": "relative, a table in each of the blocks"}


def write_found(found: Found, source: Path, folder: Path) -> ImportReport:
    """Write our files: encoder, decoder or predictor, classifier, as far as a checkpoint holds them."""
    recipe, files = f"{found.format.name}, imported from {source.name}", []
    if found.classifier is None or found.classifier.pool == "class":  # mean pooling leaves it no final norm
        save_encoder(folder, found.encoder, scale=BYTES, recipe=recipe)
        files.append("encoder")
    if found.decoder is not None:
        save_decoder(folder, found.decoder)
        files.append("decoder")
    if found.predictor is not None:
        save_predictor(folder, found.predictor, method=found.format.name)
        files.append("predictor")
    if found.classifier is not None:
        save_classifier(folder, found.classifier, scale=BYTES, recipe=recipe)
        files.append("classifier")
    names = tuple(f"{name}.{ending}" for name in files for ending in ("safetensors", "json"))
    return ImportReport(source, folder, found, names)
