"""Speed and memory against other libraries on the same work with the same result: `make bench`."""
