"""Generated stubs of the contract: see proto/weft/v1."""
