"""What the sparse benchmark measures, one system a file; `registry` lists them."""
