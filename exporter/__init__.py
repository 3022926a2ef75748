"""From a trained FP32 model to a half-precision bundle: reading, planning, converting, proving."""
