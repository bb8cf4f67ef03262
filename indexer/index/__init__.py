"""The index on disk: records in, Parquet out, and questions to it. Knows neither torch nor the kernels."""
