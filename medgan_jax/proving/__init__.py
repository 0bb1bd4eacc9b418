"""Whether synthetic images help a classifier: a trial with folds, arms and intervals."""
