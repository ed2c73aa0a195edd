// Linked into the static agent by cross/zig-cc, in place of code that it never runs.
//
// Nothing can unwind: panics abort, and no code of ours has unwind tables. The standard library and
// the C runtime name the unwinder all the same, and would bring in 26 KB of it. A call is a bug
// of the build, and stops the program where a debugger finds it.
//
// musl's pthread_setname_np writes the name of another thread into a file, whose path it makes with
// printf: 11 KB that nothing else needs. Threads of the agent name only themselves.

#include <errno.h>
#include <pthread.h>
#include <sys/prctl.h>

#define NEVER_CALLED(name) \
    void name(void);       \
    void name(void) { __builtin_trap(); }

NEVER_CALLED(_Unwind_Backtrace)
NEVER_CALLED(_Unwind_DeleteException)
NEVER_CALLED(_Unwind_FindEnclosingFunction)
NEVER_CALLED(_Unwind_GetCFA)
NEVER_CALLED(_Unwind_GetDataRelBase)
NEVER_CALLED(_Unwind_GetIP)
NEVER_CALLED(_Unwind_GetIPInfo)
NEVER_CALLED(_Unwind_GetLanguageSpecificData)
NEVER_CALLED(_Unwind_GetRegionStart)
NEVER_CALLED(_Unwind_GetTextRelBase)
NEVER_CALLED(_Unwind_RaiseException)
NEVER_CALLED(_Unwind_Resume)
NEVER_CALLED(_Unwind_SetGR)
NEVER_CALLED(_Unwind_SetIP)
#if defined(__arm__)
NEVER_CALLED(_Unwind_VRS_Get)
NEVER_CALLED(_Unwind_VRS_Set)
NEVER_CALLED(__aeabi_unwind_cpp_pr0)
NEVER_CALLED(__aeabi_unwind_cpp_pr1)
NEVER_CALLED(__aeabi_unwind_cpp_pr2)
NEVER_CALLED(__gnu_unwind_frame)
#endif

// `--wrap=pthread_setname_np` brings each call here.
int __wrap_pthread_setname_np(pthread_t thread, const char *name);
int __wrap_pthread_setname_np(pthread_t thread, const char *name) {
    if (thread != pthread_self()) return ENOSYS;
    return prctl(PR_SET_NAME, name) == 0 ? 0 : errno;
}
