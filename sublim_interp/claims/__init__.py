"""The field's claims, each a YAML file with its tests; and the verdict, computed from published or stored tables."""
