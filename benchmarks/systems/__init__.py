"""What is measured, one system a file; `registry` lists them."""
