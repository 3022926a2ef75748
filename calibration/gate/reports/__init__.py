"""The result of a check as JSON, JUnit XML and Markdown."""
