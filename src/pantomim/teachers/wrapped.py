"""A network of another library as a teacher: timm's, open_clip's, transformers', CLIP's own."""

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.formats.wrapped import WrappedEncoder
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.encoder import Output, check_blocks, mean_of_blocks, resize


class WrappedTeacher(Teacher):
    """A frozen network of another library; its features are those of its patches.

    Args:
        encoder: On the student's grid, see `fitting.fit_wrapped`; it belongs to the teacher from then on.
        output: The last block's output as it is, after the final norm, or after the projection too.
        blocks: Mean over the outputs of so many last blocks, each token of each standardised before; 1: the last alone.

    Raises:
        ValueError: if the network has no such output.
    """

    def __init__(self, encoder: WrappedEncoder, *, output: Output = "block", blocks: int = 1) -> None:
        super().__init__()
        if output not in encoder.ends:
            raise ValueError(
                f"TeacherConfig.output must be {' or '.join(encoder.ends)} for {encoder.source}, which has no {output} "
                f"to take features from; got {output}."
            )
        check_blocks(encoder.source, blocks, encoder.num_blocks)
        self.encoder, self.name, self.output, self.blocks = encoder, encoder.source, output, blocks
        width = encoder.projected if output == "projection" else encoder.width
        assert width is not None
        self.width, self.grid, self.image_size = width, encoder.grid, encoder.image_size
        self.num_prefix = encoder.num_prefix if encoder.has_class_token else 0
        if encoder.has_attention:
            self.queries = ("class", "mean") if encoder.has_class_token else ("mean",)
        self._freeze()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], query: Query | None = None) -> Guidance:
        """Features, and attention if asked for; see `Teacher.forward`."""
        self.check_query(query)
        encoder = self.encoder
        # Never in half precision on a CPU; on a GPU as the student, unless asked for float32.
        with torch.autocast(images.device.type if self.float32 else "cpu", enabled=False):
            outputs = encoder.last_blocks(resize(images, self.image_size), self.blocks, query)
            tokens = mean_of_blocks(outputs.tokens)
            if self.output != "block":
                tokens = encoder.norm(tokens)
            if self.output == "projection":
                tokens = encoder.project(tokens)
        return Guidance(tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :], outputs.attention)
