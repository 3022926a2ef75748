"""The paths of the server, one group a module."""
