"""The accuracy gate: what `demi check` measures beside the golden sets, what it compares with, and the rules it judges by."""
