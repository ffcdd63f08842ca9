"""Dynamic batching: the queue of requests and the dispatch of batches to engines."""
