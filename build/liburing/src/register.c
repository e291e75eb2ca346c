/* From the output directory, where `configure` puts it. */
#include "liburing-src/register.c"
