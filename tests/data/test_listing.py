"""Which files of a folder are images, masks of them, of which split, and what is left out."""

import io
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from medgan_jax.data.listing import choose_split, find_images, refuse_annotations
from medgan_jax.errors import UserError


def image(file_format):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, file_format)
    return buffer.getvalue()


VIDEO = bytes(4) + b"ftypisom" + bytes(40)
DICOM = bytes(128) + b"DICM" + bytes(40)


def lay_down(root, files):
    for name, content in files.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_images_are_known_by_extension_or_content(tmp_path):
    formats = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
    images = {f"{file_format}{suffix}": image(file_format) for file_format in formats for suffix in ("", ".unknown")}
    images |= dict.fromkeys(("a.jfif", "a.JPE", "a.pgm", "a.pbm", "a.pnm", "a.jp2", "a.j2k", "a.jpx"), b"not looked at")
    images |= {"scan.dcm": DICOM, "scan": DICOM}
    others = {"notes.txt": b"P1 is a patient", "a.csv": b"x", "b.csv": b"y", "film.mp4": VIDEO, "README": b"hello"}
    others |= {"all.zip": b"PK\3\4", "page.html": b"<html>", ".hidden.png": b"", ".git/x.png": b""}
    litter = (".DS_Store", "Thumbs.db", "desktop.ini", "._PNG.png", "__MACOSX/x.png", "deeper/.DS_Store")
    lay_down(tmp_path, {**images, **others, **dict.fromkeys(litter, b"litter")})
    os.mkfifo(tmp_path / "pipe")
    names, left_out = find_images(str(tmp_path))
    assert names == sorted(images)
    assert left_out == Counter(
        {".txt": 1, ".csv": 2, "video": 1, "zip archive": 1, "web page": 1, "without extension": 2, "hidden": 2}
    )


def test_what_a_folder_without_images_holds_is_said(tmp_path):
    lay_down(tmp_path, {"a.txt": b"", "b.txt": b"", "c.zip": b"PK\3\4", ".DS_Store": b""})
    with pytest.raises(UserError, match="holds no images: there are only 2 .txt, 1 zip archive$"):
        find_images(str(tmp_path))


@pytest.mark.parametrize(
    ("patterns", "kept", "left_out"),
    [
        ({"include": "*_left.png"}, ["a/1_left.png"], {"by data.include=*_left.png": 3}),
        ({"include": "a/*,b/2*"}, ["a/1_left.png", "a/2.png", "b/2.png"], {"by data.include=a/*,b/2*": 1}),
        ({"exclude": "b/*, *_left*"}, ["a/2.png"], {"by data.exclude=b/*": 2, "by data.exclude=*_left*": 1}),
        ({"include": "a/*", "exclude": "*2*,x"}, ["a/1_left.png"],
            {"by data.exclude=*2*": 2, "by data.exclude=x": 0, "by data.include=a/*": 1}),
    ],
)  # fmt: skip
def test_patterns(tmp_path, patterns, kept, left_out):
    lay_down(tmp_path, dict.fromkeys(("a/1_left.png", "a/2.png", "b/1.png", "b/2.png"), b""))
    names, counts = find_images(str(tmp_path), **patterns)
    assert names == kept and dict(counts) == left_out


@pytest.mark.parametrize("spelling", ["n\xe9vus", "ne\u0301vus"])
def test_patterns_are_equal_in_composed_and_decomposed_unicode(tmp_path, spelling):
    names = ["m/3.png", "ne\u0301vus/1.png", "n\xe9vus/2.png"]
    lay_down(tmp_path, dict.fromkeys(names, b""))
    assert find_images(str(tmp_path), exclude=f"{spelling}/*")[0] == names[:1]
    assert find_images(str(tmp_path), include=f"{spelling}/*")[0] == names[1:]


@pytest.mark.parametrize(
    ("images", "masks", "pattern"),
    [
        (["x.png", "y.png"], ["x_mask.png", "y_mask.png"], "*_mask.png"),
        (["x.jpg"], ["x_segmentation.png", "x_superpixels.png"], "*_segmentation.png,*_superpixels.png"),
        (["benign/b (1).png"], ["benign/b (1)_mask.png", "benign/b (1)_mask_1.png"], "*_mask.png,*_mask_*.png"),
        (["1.png"], ["1_gt.png", "1-label.png", "1_left_mask.png"], "*-label.png,*_gt.png,*_left_mask.png"),
        (["1.png"], ["mask_1.png"], "*mask_*.png"),
        (["images/1.png"], ["masks/1.png"], "masks/*"),
        (["images/img1.png"], ["masks/mask1.png"], "masks/*"),
        (["a/1.png"], ["a/Annotations/7.png", "labels/8.png"], "*/Annotations/*,labels/*"),
        (["Data/I_1.jpg"], ["Part1_GroundTruth/I_1_segmentation.png"], "Part1_GroundTruth/*"),
        (["Original/1.tif"], ["Ground Truth/1.tif"], "Ground Truth/*"),
        (["CXR/M1.png"], ["ManualMask/leftMask/M1.png"], "ManualMask/*"),
        (["JPEGImages/1.jpg"], ["SegmentationClass/1.png", "SegmentationObject/1.png"],
            "SegmentationClass/*,SegmentationObject/*"),
        (["imagesTr/B_01_0000.png"], ["labelsTr/B_01.png"], "labelsTr/*"),
        (["leftImg8bit/x_000_leftImg8bit.png"], ["gtFine/x_000_gtFine_labelIds.png"], "gtFine/*"),
        (["training/images/21_training.tif"], ["training/1st_manual/21_manual1.gif"], "*/1st_manual/*"),
        (["Segmentation/images/1.png"], ["Segmentation/masks/1.png"], "*/masks/*"),
        (["i/1.png"], ["MASKS_resized/1.png", "annots/1.png", "gt_png/1.png", "mask_images/1.png"],
            "MASKS_resized/*,annots/*,gt_png/*,mask_images/*"),
        (["images/ROI_1.png"], ["masks_png/ROI_1_mask.png"], "masks_png/*"),
        (["ROI_1.png", "label_1.png"], ["ROI_1_mask.png", "label_1_gt.png"], "*_mask.png,*_gt.png"),
        (["im.png", "im3.png"], ["im3GT.png", "im3mask.png", "immask.png"], "*GT.png,*mask.png"),
        (["1.png"], ["1_mask (1).png", "1_mask(2).png", "1_mask[3].png"], "*_mask (*).png,*_mask(*).png,*_mask***.png"),
        (["1.png"], ["1_anno.png", "1_annot.png", "1_bw.png", "1_labelmap.png"],
            "*_anno.png,*_annot.png,*_bw.png,*_labelmap.png"),
        (["1.png"], ["1_binary.png", "1_lbl.png", "1_outline.png", "1_roi.png", "1_trimap.png"],
            "*_binary.png,*_lbl.png,*_outline.png,*_roi.png,*_trimap.png"),
    ],
)  # fmt: skip
def test_masks_beside_images_are_refused_and_left_out_as_the_message_says(tmp_path, images, masks, pattern):
    names = sorted([*images, *masks])
    with pytest.raises(UserError) as raised:
        refuse_annotations(names, folder="place")
    message = str(raised.value)
    assert f"data.path=place: {len(masks)} of {len(names)} images are masks or annotations of others" in message
    assert f"data.exclude='{pattern}'" in message and sorted(masks)[0] in message and "data.include='*'" in message
    lay_down(tmp_path, dict.fromkeys(names, b""))
    assert find_images(str(tmp_path), exclude=pattern)[0] == images


@pytest.mark.parametrize(
    "names",
    [
        ["mask_negative/1.png", "mask_positive/1.png"],
        ["with_mask/1.png", "without_mask/1.png"],
        ["label_1.png", "label_2.png"],
        ["label_1/a.png", "label_2/a.png"],
        ["mask/a1.png", "no_mask/b1.png"],
        ["x_mask.png", "y.png"],
        ["masks/1.png", "masks/2.png"],  # all there is
        ["unmasked.png", "segment.png", "labels.png"],
        ["1.png", "1_lesion.png", "1_m.png", "12_mask.png", "a.png", "after_mask.png"],
        ["segmented_neutrophil/1.png", "band/1.png"],
        ["manual_1/a1.png", "automatic/b1.png"],
    ],
)
def test_names_that_may_be_of_images_are_accepted(names):
    refuse_annotations(names, folder="place")


@pytest.mark.parametrize(
    ("names", "split", "chosen", "inside"),
    [
        (["a/1.png", "b/1.png"], "train", "a/1.png b/1.png", "a/1.png b/1.png"),
        (["train/a/1.png", "test/a/1.png", "x.png"], "train", "train/a/1.png", "a/1.png"),
        (["Training/1.png", "Validation/2.png"], "val", "Validation/2.png", "2.png"),
        (["train/1.png", "test/2.png", "valid/3.png"], "train + val", "train/1.png valid/3.png", "1.png 3.png"),
        (["benign/train/1.png", "benign/test/2.png"], "test", "benign/test/2.png", "benign/2.png"),
        (["chest/train/ill/1.png", "chest/val/ill/2.png"], "train", "chest/train/ill/1.png", "ill/1.png"),
        (["training_set/a/1.png", "test_set/a/2.png"], "test", "test_set/a/2.png", "a/2.png"),
        (["train_images/1.png", "test_images/2.png"], "train", "train_images/1.png", "1.png"),
        (["imagesTr/1.png", "imagesTs/2.png"], "test", "imagesTs/2.png", "2.png"),
        (["train2017/1.png", "val2017/2.png", "test2017/3.png"], "val", "val2017/2.png", "2.png"),
        (["trainset/1.png", "validset/2.png"], "val", "validset/2.png", "2.png"),
        (["d/ISIC_Train/a/1.png", "d/ISIC_Test/a/2.png"], "train", "d/ISIC_Train/a/1.png", "a/1.png"),
        (["a/train_data/1.png", "a/val_data/2.png"], "val", "a/val_data/2.png", "a/2.png"),
        (["train_a/1.png", "test_b/2.png"], "train", "train_a/1.png test_b/2.png", "train_a/1.png test_b/2.png"),
        (["test_a/1.png", "test_b/2.png"], "train", "test_a/1.png test_b/2.png", "test_a/1.png test_b/2.png"),
        (["x/val_a/1", "y/test_a/2"], "train", "x/val_a/1 y/test_a/2", "x/val_a/1 y/test_a/2"),
        (["TR/1.png", "TS/2.png"], "train", "TR/1.png TS/2.png", "TR/1.png TS/2.png"),
    ],
)
def test_folders_of_splits(names, split, chosen, inside):
    assert choose_split(names, split, folder="place")[:2] == (chosen.split(" "), inside.split(" "))


def test_what_a_split_leaves_out_is_counted():
    names = ["train/1.png", "test/2.png", "test/3.png", "val/4.png", "extra/5.png"]
    assert choose_split(names, "train", folder="place")[2] == Counter(
        {
            "in test (data.split=train)": 2,
            "in val (data.split=train)": 1,
            "beside the folders of splits (data.split=train)": 1,
        }
    )


@pytest.mark.parametrize(
    ("names", "split", "says"),
    [
        (["test/1.png", "val/1.png"], "train", "no images of train, its folders are those of test, val;"),
        (["train/1.png"], "train[:80%]", r"no images of train\[:80%\], its folders are those of train;"),
        (["train/1.png"], "train+dev", "no images of dev"),
        (["a/1.png"], "test", "no images of test, it has no such folders;"),
    ],
)
def test_a_split_must_be_there(names, split, says):
    with pytest.raises(UserError, match=rf"^data.split='{split[0]}.*data.path=place has {says}"):
        choose_split(names, split, folder="place")
