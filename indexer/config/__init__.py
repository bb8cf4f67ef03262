"""What a build is asked to do: the options of the `build` command, and what reads them."""
