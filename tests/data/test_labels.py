"""Tables of labels: how they are published and spelled, which files their rows mean, and what is said of wrong ones."""

import gzip
import io
import re
import zipfile

import pytest

from medgan_jax.data.labels import Row, match_labels, read_labels
from medgan_jax.errors import UserError

IDS = ["ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg"]


@pytest.fixture
def read(tmp_path):
    """The rows of a table of the given text or bytes."""

    def call(table, *, image_column="image", label_column="label", **options):
        path = tmp_path / "labels.csv"
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
        return read_labels(str(path), image_column=image_column, label_column=label_column, **options)

    return call


@pytest.fixture
def labels_of(read):
    """The labels that a table gives to files."""

    def call(names, table, on_missing="refuse", **columns):
        rows = match_labels(
            names, read(table, **columns), folder="images", table_path="labels.csv", on_missing=on_missing
        )
        return {name: row.label for name, row in rows.items()}

    return call


@pytest.mark.parametrize(
    "table",
    [
        "ISIC_3,benign\nISIC_1,benign\nISIC_2,malignant\n",
        "ISIC_1.jpg,benign\nISIC_2.jpg,malignant\nISIC_3.jpg,benign",
        "image,label\nISIC_1,benign\nISIC_2,malignant\nISIC_3,benign\n",
        "\ufeffLabel,Image,age\r\nbenign,ISIC_1,5\r\nmalignant,ISIC_2,\r\nbenign,ISIC_3,7\r\n",
        '\n"ISIC_1" , "benign"\n\n ISIC_2,malignant \nISIC_3,benign\nISIC_3,benign\n,\n',
        "image;label\nISIC_1;benign\nISIC_2;malignant\nISIC_3;benign\n",
        "ISIC_1\tbenign\nISIC_2\tmalignant\nISIC_3\tbenign\n",
        "image\tlabel\r\nISIC_1\tbenign\r\nISIC_2\tmalignant\r\nISIC_3\tbenign\r\n".encode("utf-16"),
        "ISIC_1,benign\rISIC_2,malignant\rISIC_3,benign\r",
        'image;label;note\nISIC_1;benign;"a, b,\nc"\nISIC_2;malignant;\nISIC_3;benign;\n',
    ],
    ids=["headerless", "extensions", "header", "excel", "untidy", "semicolons", "tabs", "utf-16", "old mac", "notes"],
)
def test_tables_of_text(labels_of, caplog, table):
    assert list(labels_of(IDS, table).items()) == list(zip(IDS, ("benign", "malignant", "benign"), strict=True))
    assert not caplog.messages


def test_an_unquoted_delimiter_of_another_table_is_text(labels_of):
    assert labels_of(["a, b.png"], '"a, b.png";nevus\n') == {"a, b.png": "nevus"}


@pytest.mark.parametrize(
    ("header", "row", "label", "understood"),
    [
        ("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC", "0.0,1.0,0.0,0.0,0.0,0.0,0.0", "NV", "the columns MEL, .*, VASC$"),
        ("image,MEL,NV,UNK,score_weight,validation_weight", "1.0,0.0,0.0,1.0,0.0", "MEL", "the columns MEL, NV, UNK$"),
        ("image_id,melanoma,seborrheic_keratosis", "0.0,1.0", "seborrheic_keratosis", "nevus where there is none$"),
        ("image_id,melanoma,seborrheic_keratosis", "0.0,0.0", "nevus", "nevus where there is none$"),
        (
            "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
            "IP_1,male,45.0,torso,unknown,benign,0", "benign", "images by image_name, labels by benign_malignant$",
        ),
        ("isic_id,target,patient_id", "1,IP_1", "1", "images by isic_id, labels by target$"),
        ("Image Index,Diagnosis,Age", "nevus,5", "nevus", "images by Image Index, labels by Diagnosis$"),
        ("file-name,kind", "nevus", "nevus", "images by file-name, labels by kind$"),
        ("image,melanoma", "0.0", "0.0", "labels by melanoma$"),
        ("image,lesion,age,nevus,wart", "L1,55,False,True", "wart", "the columns nevus, wart$"),
        ("image;nevus;wart", "0,0;1,0", "wart", "the columns nevus, wart$"),
        ("image,nevus,wart", "0.000,1.000", "wart", "the columns nevus, wart$"),
        ("image,nevus,wart", "1e+00,0e+00", "nevus", "the columns nevus, wart$"),
    ],
    ids=[
        "2018", "2019, test", "2017", "2017, neither", "2020", "2024", "spaces", "one column", "0 and 1", "pandas",
        "decimal commas", "decimals", "exponents",
    ],
)  # fmt: skip
def test_tables_as_published(read, caplog, header, row, label, understood):
    table = f"{header}\nISIC_1{';' if ';' in header else ','}{row}\n"
    assert read(table)["ISIC_1"].label == label
    (line,) = caplog.messages
    assert line.startswith("data.labels_csv=") and re.search(understood, line)


def test_ham10000_has_lesions_as_groups(read):
    table = (
        "lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_1,ISIC_1,bkl,histo,80.0,male,scalp\n"
        ",ISIC_2,nv,histo,,male,ear\n"
    )
    expected = {"ISIC_1": Row("bkl", "HAM_1"), "ISIC_2": Row("nv", "")}
    assert read(table, group_column="lesion_id") == expected


def test_row_numbers_of_pandas_are_no_classes(read):
    assert read(",Unnamed: 0,image,nevus,wart\n0,0,a,0,1\n1,1,b,1,0\n")["a"].label == "wart"


def test_columns_are_chosen_and_numbers_stay_text(read):
    table = "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.0,1.0\nISIC_2,1.0,0.0\nISIC_3,0.0,\n"
    rows = read(table, image_column="IMAGE_ID", label_column="melanoma")
    assert {name: row.label for name, row in rows.items()} == {"ISIC_1": "0.0", "ISIC_2": "1.0", "ISIC_3": "0.0"}
    assert list(read(table, label_column="seborrheic_keratosis")) == ["ISIC_1", "ISIC_2"]  # the third has none


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, "x")
    return buffer.getvalue()


MANY = ",".join(f"column_{number}" for number in range(300))


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("", {}, "is an empty table"),
        ("a,m\xe9lanome\nb,ne\xe9vus\n".encode("latin-1"), {}, "is not UTF-8 text, first in line 1: save it as CSV"),
        (b"\xff\xfea", {}, "is not UTF-8 text"),
        ("image,label\nx,a\n".encode("utf-16-le"), {}, "is not text: save it as CSV, UTF-8"),
        (zipped("xl/workbook.xml"), {}, "is an Excel workbook, or another ZIP file: save the table as CSV, UTF-8$"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", {}, "is an Excel workbook: save"),
        (gzip.compress(b"a,b", mtime=0), {}, "is a gzip file: unpack it"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", {}, "is a Git LFS pointer"),
        ("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", {}, "is a web page .HTML., not the file itself"),
        ('[{"image": "' + 9000 * "x" + '"}]', {}, "neither a column 'image' nor just two .* two of .*x{150}[.]{3}$"),
        (f"image,{MANY}\n", {}, "has no column 'label': set data.label_column to one of image, .*10 and 289 more$"),
        ("image,a,b\nx,u,v\n", {"label_column": "c"}, "no column 'c': set data.label_column to one of image, a, b$"),
        ("picture,a,b\nISIC_1,0,1\n", {}, "neither a column 'image' nor just two .* to two of picture, a, b$"),
        ("image_id,filename,dx\nx,y,z\n", {}, "several columns .*: image_id, filename; set data.image_column to one$"),
        ("image,dx,target\nx,y,1\n", {}, "several columns of this kind: dx, target; set data.label_column to one$"),
        ("ISIC_1,a\nISIC_2\n", {}, r"row 2 should have 2 columns, that of the image filled in, but is 'ISIC_2'"),
        ("image,label\nISIC_1,a\n,a\n", {}, r"row 3 should have 2 columns, .*, but is ',a'"),
        ("ISIC_1,a\nISIC_2,a\nISIC_1,b\n", {}, r"gives two labels to ISIC_1, the second in row 3;"),
        ('ISIC_1,"a\nISIC_2,b\n', {}, "row 1 has a label of several lines"),
        ("ISIC_1,a\n", {"group_column": "patient"}, "no header with a column 'image': data.group_column='patient'"),
        ("image,label\nx,a\n", {"group_column": "p"}, "no column 'p': set data.group_column to one of image, label$"),
        (
            "image,label,p\nx,a,1\nx,a,2\n", {"group_column": "p"}, "gives two groups to x, the second in row 3;",
        ),
        (
            "image,MEL,NV\nu,1,0\nv,0,0\nw,1,1\nx,0.5,0.5\ny,,1\n", {},
            r"the columns MEL, NV need one 1 in each row .* not so in 4 of 5 rows: 3, 4, 5 and 1 more; mend them",
        ),
        (
            "image,MEL,NV,male\nu,1,0,1\nv,0,1,0\n", {},
            "MEL, NV, male need one 1 .* take columns that are no classes, such as an age, out of the table",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table(read, table, options, message):
    with pytest.raises(UserError, match=message) as raised:
        read(table, **options)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_table_must_be_there(tmp_path):
    for path, message in [("", "data.labels_csv is empty"), (f"{tmp_path}/no.csv", "no.csv: no such file")]:
        with pytest.raises(UserError, match=message):
            read_labels(path, image_column="image", label_column="label")


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("a/1.png", "1"),
        ("a/b/1.png", "b/1.png"),
        ("1.png", "images/train/1.png"),
        ("a/1.png", "train/a/1"),
        ("a/1.png", r"C:\data\a\1.png"),
        ("1.png", "./1.png"),
        ("img_01.jpg", "IMG_01.JPG"),
        ("IMG_01.JPEG", "img_01.jpg"),
        ("scan.png", "scan.dcm"),
        ("patient.5.png", "patient.5"),
        ("m\xe9lanome.png", "me\u0301lanome.png"),
        ("Me\u0301lanome.png", "M\xc9LANOME.TIF"),
    ],
)
def test_a_row_means_the_file_of_the_closest_name(labels_of, file, row):
    assert labels_of([file], f"{row},x\n") == {file: "x"}


def test_the_closest_name_counts(labels_of):
    names = ["1.png", "IMG.png", "b/1.png", "img.jpg", "img.png"]
    table = "b/1.png,v\n1.png,w\nimg.png,x\nIMG.png,y\nimg.jpg,z\n"
    assert labels_of(names, table) == dict(zip(names, "wyvzx", strict=True))


@pytest.mark.parametrize(
    ("names", "table", "message"),
    [
        (
            ["a/1.png", "b/1.png"],
            "1,x\n",
            "labels.csv: 1 fits several files in images: a/1.png, b/1.png; name files by",
        ),
        (["x.bmp", "x.png"], "x.jpg,a\n", "x.jpg fits several files in images: x.bmp, x.png;"),
        (["IMG.png", "img.png"], "Img.png,a\n", "Img.png fits several files in images: IMG.png, img.png;"),
        (IDS, "ISIC_1,a\nISIC_1.jpg,b\nISIC_2,a\nISIC_3,a\n", "gives two labels to ISIC_1.jpg"),
        (["1.png"], "benign/1.png,a\nmalignant/1.png,b\n", "gives two labels to 1.png"),
        (["benign/1.png"], "malignant/1.png,a\n", "names 1 of 1 images that are not in images: malignant/1.png"),
        (["patient.png"], "patient.5,a\n", "not in images: patient.5;"),
        (IDS, "picture,kind\nISIC_1,a\n", "names 1 of 2 .*: picture; .*; if its first row is a header"),
        (IDS, "ISIC_1,a\nX,a\nY,a\nZ,a\nU,a\n", "4 of 5 .*: X, Y, Z and 1 more; add .*data.on_missing=skip$"),
        (IDS, "ISIC_2,a\n", "2 of 3 images in images have no label in labels.csv: ISIC_1.jpg, ISIC_3.jpg; add"),
        (IDS, "ISIC_1,a\nISIC_2,\nISIC_3,a\n", "1 of 3 images in images have no label in labels.csv: ISIC_2.jpg;"),
    ],
)
def test_what_does_not_match(labels_of, names, table, message):
    with pytest.raises(UserError, match=message):
        labels_of(names, table)


def test_what_does_not_match_may_be_left_out(labels_of, caplog):
    rows = "".join(f"X{number},a\n" for number in range(300))
    assert labels_of(IDS, f"ISIC_1,a\nISIC_2,\n{rows}", on_missing="skip") == {"ISIC_1.jpg": "a"}
    rows_left, images_left = caplog.messages
    assert "names 300 of 301 images that are not in images: X0, X1, " in rows_left
    assert rows_left.endswith("and 280 more; their rows are left out")
    assert "2 of 3 images" in images_left and "ISIC_2.jpg, ISIC_3.jpg; they are left out" in images_left
    with pytest.raises(UserError, match="names 300 of 300 images that are not in"):
        labels_of(IDS, rows, on_missing="skip")
