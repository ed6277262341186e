"""The `sublim` command: few words, each a thin layer over the library."""
