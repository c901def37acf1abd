"""Training crops for segmentation: recorded random numbers give recorded boxes and colours."""

import torch

from pantomim.data.distortion import Distortion, distorted
from pantomim.data.mask_crops import class_counts, crop_place
from pantomim.parity.item import Computed, Item
from pantomim.parity.recorded import Recorded

LEVELS = 3  # of 255: what OpenCV's vector code may differ by, as the items note
SHORT_ROW = 16  # below so many pixels a row, OpenCV's code is the scalar one, which rounds as we do


def downstream_class_share_crop(item: Item) -> Computed:
    """The crops that recorded random numbers give, and those numbers as we ask for them."""
    size, ignore = tuple(item.config["crop"]), item.config["ignore_index"]
    boxes, traces = [], []
    for trace in item.numbers["traces"]:
        labels = item.input(f"labels_{trace['map']}").numpy()
        replay = Recorded([["randint", *drawn] for drawn in trace["draws"]])
        top, left = crop_place(labels, size, item.config["cat_max_ratio"], ignore, replay)
        boxes.append([top, top + size[0], left, left + size[1]])
        crop = labels[top : top + size[0], left : left + size[1]]
        counts = class_counts(crop, ignore)
        made = {
            "map": trace["map"],
            "index": trace["index"],
            "draws": [drawn[1:] for drawn in replay.asked],
            "box_top_bottom_left_right": boxes[-1],
            "largest_share": float(counts.max(initial=0) / max(1, counts.sum())),
            "classes_in_crop": len(counts),
            "tries": len(replay.asked) // 2,
            "cropped_shape": list(crop.shape),
        }
        traces.append(made)
    return Computed({"boxes": torch.tensor(boxes)}, {"traces": traces})


def downstream_photometric(item: Item) -> Computed:
    """The colours that recorded random numbers give, and those numbers as we ask for them."""
    config = item.config
    distortion = Distortion(
        brightness=config["brightness_delta"],
        contrast=tuple(config["contrast_range"]),
        saturation=tuple(config["saturation_range"]),
        hue=config["hue_delta"],
    )
    computed, traces = Computed(), []
    for trace in item.numbers["traces"]:
        name, replay = f"image_bgr_{trace['image']}", Recorded(trace["draws"])
        image = item.input(name).flip(2).permute(2, 0, 1).numpy()
        ours = torch.from_numpy(distorted(image, distortion, replay)).permute(1, 2, 0).flip(2)
        target = item.output(name)
        if target is not None and ours.shape[1] >= SHORT_ROW:
            computed.errors[name] = (ours.int() - target.int()).abs().max().item() / LEVELS
        computed.outputs[name] = ours
        traces.append({"image": trace["image"], "draws": replay.asked})
    computed.numbers["traces"] = traces
    return computed
