"""A tokenizer learned from a teacher: codes out of which a small decoder can tell what the teacher says of an image.

An encoder sees the image; what it says of each patch is rounded to the nearest code; a decoder, from the codes alone,
predicts the teacher's features. The ids are what BEiT and CAE then predict.

Paper: Peng et al. 2022, *BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers*, arXiv:2208.06366,
section 2.2 ("VQ-KD").
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.methods.base import Method, Requirements
from pantomim.methods.dvae import perplexity
from pantomim.nn.dvae import at_least_float32
from pantomim.nn.vit import ENCODER_SIZES, Encoder, EncoderConfig
from pantomim.nn.vqkd import TaskLayer, VQKDNetworks, directions, nearest
from pantomim.teachers.base import Teacher
from pantomim.teachers.choice import TeacherConfig


def vqkd_encoder(size: Literal["base", "large"] = "base") -> EncoderConfig:
    """The tokenizer's encoder for images of 224 x 224: learned positions, no scales, pixels from -1 to 1.

    Source: the authors' `modeling_vqkd.py`. Its first values are not in our specification: here they are BEiT's.
    """
    return EncoderConfig(
        **ENCODER_SIZES[size], position="learned", initialisation="beit", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


@frozen
class VQKDConfig:
    """The parts of VQ-KD, with the values of the paper's ViT-B.

    Args:
        encoder: Of the tokenizer; its patches are the cells.
        decoder_depth: Blocks of the decoder, which is as wide as the encoder and sees the codes alone.
        vocabulary: Number of codes.
        code_width: Numbers in a code.
        teacher: Whose features are predicted; there is no default.
        commitment: Weight of the distance between what the encoder says and its code.
        decay: Share of itself that a code keeps in a step.
        dead_below: A code with fewer members a batch than this (averaged over steps) begins anew, at what the encoder
            says of a patch of the batch; 0: never, as in the paper.
        clustering: Rounds of the clustering of the first batch, from which the codes begin.

    Raises:
        ValueError: if a number is out of range, or the teacher is a moving average.

    Paper: section 2.2, appendix; the authors' `norm_ema_quantizer.py`.
    """

    kind: Literal["vqkd"] = "vqkd"
    encoder: EncoderConfig = field(default_factory=vqkd_encoder)
    decoder_depth: int = 3
    vocabulary: int = 8192
    code_width: int = 32
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    commitment: float = 1.0
    decay: float = 0.99
    dead_below: float = 0.0
    clustering: int = 10

    def __post_init__(self) -> None:
        for name, least in (("decoder_depth", 1), ("vocabulary", 2), ("code_width", 2), ("clustering", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"VQKDConfig.{name} must be at least {least}; got {getattr(self, name)}.")
        for name in ("commitment", "dead_below"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"VQKDConfig.{name} must not be negative; got {getattr(self, name)}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"VQKDConfig.decay must be in [0, 1); got {self.decay}. The authors have 0.99.")
        if self.teacher.source == "ema":
            raise ValueError(
                "VQKDConfig.teacher must know something already; got ema, an average of the tokenizer itself. Give "
                "--teacher RUN, or another finished network."
            )

    def describe(self) -> list[tuple[str, str]]:
        """Parts and shapes."""
        encoder = self.encoder
        (height, width), (rows, cols) = encoder.image_size, encoder.grid
        return [
            ("images", f"B x {encoder.in_chans} x {height} x {width}, one code for a patch of {encoder.patch_size}"),
            ("encoder", f"{encoder.width} wide, {encoder.depth} blocks, {encoder.heads} heads"),
            ("codes", f"B x {rows} x {cols}, each one of {self.vocabulary}, {self.code_width} numbers of length 1"),
            ("decoder", f"{encoder.width} wide, {self.decoder_depth} blocks; sees codes alone"),
            ("predicts", f"features of {self.teacher.source or 'a teacher (none is given yet)'}"),
        ]

    def build(self) -> "VQKD":
        """The method, with first values drawn from torch's global generator.

        Raises:
            ValueError: if there is no teacher, it does not go with the encoder, or the quantiser's library is missing.
        """
        encoder = self.encoder.build()
        return self.build_around(encoder, self.teacher.build(encoder))

    def build_around(self, encoder: Encoder, teacher: Teacher) -> "VQKD":
        """The method with an encoder and a teacher of its grid that are there already."""
        decoder = EncoderConfig(
            image_size=encoder.grid,
            patch_size=1,
            in_chans=self.code_width,
            width=encoder.width,
            depth=self.decoder_depth,
            heads=encoder.config.heads,
            position="learned",
            initialisation="beit",
            mean=(0.0,) * self.code_width,
            std=(1.0,) * self.code_width,
        ).build()
        return VQKD(encoder, self._quantizer(), decoder, teacher, self.vocabulary, self.code_width, self.commitment)

    def _quantizer(self) -> nn.Module:
        try:
            from vector_quantize_pytorch import VectorQuantize  # imported late: other methods do without it
        except ImportError as error:
            raise ValueError(
                "method.kind vqkd needs the library vector-quantize-pytorch, which is not installed. Run "
                "`pip install 'pantomim[vq]'`."
            ) from error
        return VectorQuantize(
            dim=self.code_width,
            codebook_size=self.vocabulary,
            use_cosine_sim=True,
            decay=self.decay,
            threshold_ema_dead_code=self.dead_below,
            kmeans_init=True,
            kmeans_iters=self.clustering,
            rotation_trick=False,
            commitment_weight=0.0,
        )


@dataclass(frozen=True)
class VQKDDraws:
    """Nothing is random in a step but what the codes do: see `VQKD.draw`."""


class VQKD(Method):
    """Encoder, codes, decoder; `VQKDConfig` explains the settings.

    The library keeps the codes: it begins them, moves them, and brings dead ones back. Looking up the nearest code and
    the two losses are written out here, because the library's forward pass does not compile.

    Deviation: a code moves to the weighted mean of all that it stood for lately, as in the library; the authors average
        the means of the batches, each of length 1. It moves just before the loss of a batch, not just after.
    """

    def __init__(
        self,
        encoder: Encoder,
        quantizer: Any,
        decoder: Encoder,
        teacher: Teacher,
        vocabulary: int,
        code_width: int,
        commitment: float,
    ) -> None:
        super().__init__()
        self.encoder, self.to_code = encoder, TaskLayer(encoder.width, code_width)
        self.quantizer = quantizer
        self.decoder, self.to_feature = decoder, TaskLayer(decoder.width, teacher.width)
        self.teacher, self.vocabulary, self.commitment = teacher, vocabulary, commitment

    @property
    def codebook(self) -> Float[Tensor, "K E"]:
        """The codes as they stand, each of length 1."""
        return self.quantizer._codebook.embed[0]

    @torch.no_grad()
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> VQKDDraws:
        """In training, move the codes towards what the encoder says of this batch; the first batch begins them.

        Which patches dead codes begin anew from is drawn from torch's global generator, which the engine seeds. Drawing
        once more (`save_failure`) moves the codes once more: no matter, as that run ends there without a checkpoint.
        """
        if self.training:
            self.quantizer(directions(self.encoder, self.to_code, batch.images))
        return VQKDDraws()

    def forward(self, batch: Batch, draws: VQKDDraws) -> dict[str, Tensor]:
        """One minus the cosine of prediction and feature, and the distance from the codes, weighted (equation 2)."""
        said = directions(self.encoder, self.to_code, batch.images)  # (B, N, E), length 1
        ids = nearest(said, self.codebook)  # (B, N)
        codes = F.embedding(ids, self.codebook).to(said.dtype)
        passed = said + (codes - said).detach()  # the codes, with the gradient of what they stand for
        prediction = self.predict(passed)  # (B, N, F)
        target = at_least_float32(self.teacher(batch.images).patches)  # (B, N, F), no gradient
        cosine = F.cosine_similarity(prediction, target, dim=-1).mean()
        commitment = F.mse_loss(said, codes)
        return {
            "loss": 1 - cosine + self.commitment * commitment,
            "cosine": cosine.detach(),
            "commitment": commitment.detach(),
            "perplexity": perplexity(ids, self.vocabulary),
        }

    def predict(self, codes: Float[Tensor, "B N E"]) -> Float[Tensor, "B N F"]:
        """What the decoder makes of codes, a token each."""
        rows, cols = self.encoder.grid
        picture = codes.mT.unflatten(-1, (rows, cols))  # (B, E, rows, cols): a patch of one pixel is one code
        return self.to_feature(self.decoder(picture).patches)

    def requirements(self) -> Requirements:
        """Images of the encoder's channels and size; a step's at once, as codes move once a step, by all of them."""
        encoder = self.encoder
        return Requirements(encoder.in_chans, encoder.image_size, encoder.patch_size, whole_batch=True)

    def exports(self) -> dict[str, nn.Module]:
        """All that gives ids."""
        return {"tokenizer": VQKDNetworks(self.encoder, self.to_code, self.codebook.clone())}
