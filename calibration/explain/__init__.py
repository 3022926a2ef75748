"""`demi explain`: where the half model leaves its FP32 reference; `explanation.py` tells the story."""
