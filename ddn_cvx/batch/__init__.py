"""Everything about the batch dimension: inputs, columns of a batch of rows, the device's own."""
