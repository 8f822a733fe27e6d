"""The generation worker: engine, queue port and the loop that joins the two."""
