/* From the output directory, where `configure` puts it. */
#include "liburing-src/setup.c"
