"""Tests of the OpenVINO runtime."""
