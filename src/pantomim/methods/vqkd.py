"""VQ-KD, a tokenizer learned from a teacher: codes from which a small decoder predicts the teacher's features.

    loss = 1 - mean cosine(decoder(codes), features)  +  commitment * mean (z - stopgrad(code))^2        (equation 2)

z is the encoder's output for a patch, of length 1, and its code the nearest one; the decoder gets the code with z's
gradient (straight-through). Codes are moved by an EMA, not by the gradient. The ids are what BEiT and CAE then predict.

Paper: Peng et al. 2022, *BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers*, arXiv:2208.06366,
section 2.2 ("VQ-KD").
"""

from dataclasses import field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, AtLeastTwo, NotNegative, ShareBelowOne
from pantomim.methods.base import Method, Requirements
from pantomim.methods.dvae import perplexity
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.nn.vqkd import TaskLayer, VQKDNetworks, directions, nearest
from pantomim.teachers.base import Teacher
from pantomim.teachers.choice import TeacherConfig


def vqkd_encoder(size: Literal["base", "large"] = "base") -> EncoderConfig:
    """The tokenizer's encoder for images of 224 x 224: learned positions, no scales, pixels from -1 to 1.

    Source: the authors' `modeling_vqkd.py`. Its initialisation is not in our specification: here it is BEiT's.
    """
    return EncoderConfig(
        **ENCODER_SIZES[size], position="learned", initialisation="beit", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


@frozen
class VQKDConfig:
    """The parts of VQ-KD, with the values of the paper's ViT-B.

    Paper: section 2.2, appendix; the authors' `norm_ema_quantizer.py`.
    """

    kind: Literal["vqkd"] = "vqkd"
    encoder: EncoderConfig = field(default_factory=vqkd_encoder)  # Of the tokenizer; its patches are the cells
    decoder_depth: AtLeastOne = 3  # Blocks of the decoder, which is as wide as the encoder and sees the codes alone
    vocabulary: AtLeastTwo = 8192  # Number of codes
    code_width: AtLeastTwo = 32  # Width of a code
    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # Whose features are predicted; there is no default
    commitment: NotNegative = 1.0  # Weight of the distance between the encoder's output and its code
    decay: ShareBelowOne = 0.99  # What a code keeps of itself at each step
    # Members a batch (averaged) below which a code is drawn anew from the batch; 0: never, as published
    dead_below: NotNegative = 0.0
    clustering: AtLeastOne = 10  # Rounds of k-means on the first batch, which initialises the codes

    def __post_init__(self) -> None:
        if self.teacher.source == "ema":
            raise ValueError(
                "VQKDConfig.teacher must be trained already; got ema, an average of the tokenizer. Name a RUN or FILE."
            )

    def build(self, steps: int | None = None, teacher: Teacher | None = None) -> "VQKD":
        """The method, initialised from torch's global generator; `teacher` in place of the config's, if given."""
        return VQKD(self, teacher)


class VQKD(Method):
    """Encoder, codes, decoder.

    The library keeps the codes: it initialises them, moves them, and replaces dead ones. Looking up the nearest code
    and the two losses are written out here, because the library's forward pass does not compile.

    Deviation: a code moves to the weighted mean of all that it stood for lately, as in the library; the authors average
        the means of the batches, each of length 1. It moves just before the loss of a batch, not just after.
    """

    def __init__(self, config: VQKDConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        encoder = config.encoder.build()
        teacher = teacher or config.teacher.build(encoder)
        width, channels = encoder.width, config.code_width
        sizes = (encoder.grid, 1, channels, width, config.decoder_depth, config.encoder.heads)  # a "pixel" is a code
        decoder = EncoderConfig(
            *sizes, position="learned", initialisation="beit", mean=(0.0,) * channels, std=(1.0,) * channels
        ).build()
        self.quantizer: Any = _quantizer(config)
        self.encoder, self.to_code = encoder, TaskLayer(width, channels)
        self.decoder, self.to_feature = decoder, TaskLayer(width, teacher.width)
        self.teacher, self.vocabulary, self.commitment = teacher, config.vocabulary, config.commitment
        self.requirements = Requirements.of(config.encoder, whole_batch=True)  # codes move once a step, by all images

    @property
    def codebook(self) -> Float[Tensor, "K E"]:
        """The codes as they stand, each of length 1."""
        return self.quantizer._codebook.embed[0]

    @torch.no_grad()
    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> None:
        """In training, move the codes towards the encoder's output for this batch; the first batch initialises them.

        What replaces dead codes is drawn from torch's global generator, which the engine seeds. Drawing once more
        (`save_failure`) moves the codes once more: no matter, as that run ends there without a checkpoint.
        """
        if self.training:
            self.quantizer(directions(self.encoder, self.to_code, batch.images))

    def forward(self, batch: Batch, draws: None) -> dict[str, Tensor]:
        """The decoder's prediction of the teacher's features, and the distance from the codes (equation 2)."""
        latent = directions(self.encoder, self.to_code, batch.images)  # (B, N, E), length 1
        ids = nearest(latent, self.codebook)  # (B, N)
        codes = F.embedding(ids, self.codebook).to(latent.dtype)
        passed = latent + (codes - latent).detach()  # the codes, with the gradient of what they stand for
        prediction = self.predict(passed)  # (B, N, F)
        target = at_least_float32(self.teacher(batch.images).patches)  # (B, N, F), no gradient
        cosine, commitment = F.cosine_similarity(prediction, target, dim=-1).mean(), F.mse_loss(latent, codes)
        loss, used = 1 - cosine + self.commitment * commitment, perplexity(ids, self.vocabulary)
        return {"loss": loss, "cosine": cosine, "commitment": commitment, "perplexity": used}

    def predict(self, codes: Float[Tensor, "B N E"]) -> Float[Tensor, "B N F"]:
        """The decoder's prediction from codes, a token each."""
        picture = codes.mT.unflatten(-1, self.encoder.grid)  # (B, E, rows, cols)
        return self.to_feature(self.decoder(picture).patches)

    def exports(self) -> dict[str, Any]:
        """All that gives ids."""
        return {"tokenizer": VQKDNetworks(self.encoder, self.to_code, self.codebook.clone())}


def _quantizer(config: VQKDConfig) -> Any:
    try:
        from vector_quantize_pytorch import VectorQuantize  # imported late: other methods do without it
    except ImportError as error:
        raise ValueError(
            "method.kind vqkd needs vector-quantize-pytorch, which is not installed. Run `pip install 'pantomim[vq]'`."
        ) from error
    return VectorQuantize(
        dim=config.code_width,
        codebook_size=config.vocabulary,
        use_cosine_sim=True,
        decay=config.decay,
        threshold_ema_dead_code=config.dead_below,
        kmeans_init=True,
        kmeans_iters=config.clustering,
        rotation_trick=False,
        commitment_weight=0.0,
    )
