"""The generation worker: engine, queue port and the consumer that joins the two."""
