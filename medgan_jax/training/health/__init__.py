"""Health checks: measure a training, recognise known failures, and suggest which config fields to change."""
