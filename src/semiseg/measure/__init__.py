"""Running time, memory and processor use of any command, sampled as the FLARE22 challenge samples them."""
