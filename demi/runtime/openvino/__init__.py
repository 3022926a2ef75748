"""OpenVINO; `session.py` is the only module that imports it."""
