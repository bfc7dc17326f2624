"""Who learns clicks in the ctr benchmark, one a file; `registry` lists them."""
