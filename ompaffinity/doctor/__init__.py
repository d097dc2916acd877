"""What on this machine stands in the way of binding, and the fix."""
