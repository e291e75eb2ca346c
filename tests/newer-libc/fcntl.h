/* Makes <fcntl.h> look like that of glibc 2.43, which has `struct open_how` under _GNU_SOURCE. */
#include_next <fcntl.h>

#if defined _GNU_SOURCE && !defined FANWAVE_TESTS_OPEN_HOW
#define FANWAVE_TESTS_OPEN_HOW

#include <stdint.h>

struct open_how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};
#endif
