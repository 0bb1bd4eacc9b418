"""What the guard catches and reveals, and whether the audit finds what is there: the figures of docs/privacy.md.

python -m benchmarks.privacy guard --config.data.path=isic2016/images --config.data.labels_csv=isic2016/labels.csv \
    --config.data.source=csv --config.data.class_filter=malignant --config.data.folds=5
python -m benchmarks.privacy audit

guard: of five folds, how many altered copies of training images are rejected, and how many reals; beside the search
that has the images. And how like their originals the pictures are that can be drawn from the hashes.
audit: of a generator that was trained on ten phantoms until it copies them.
"""
