"""The batch dimension: inputs, elements, columns, differences, the device's own."""
