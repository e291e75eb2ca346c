/* From the output directory, where `configure` makes it reachable. */
#include "liburing-src/queue.c"
