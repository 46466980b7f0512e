/* Try to leave a box, and say what happened: the attacker of the escape tests.
 *
 * usage: probe GROUP [ARGUMENT...]
 *
 * Each attempt prints one line, "name answer": "ok" when the kernel let it happen, an error's name, the
 * signal that ended it, or what was found. Each runs in a process of its own, so that one which is killed
 * or which succeeds does not disturb the next. Outside of a box the attempts succeed as far as the caller's
 * rights go; the tests use that as their control.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Numbers that are the same on every machine, for headers that do not know them yet. */
enum {
    NR_open_tree = 428, NR_move_mount, NR_fsopen, NR_fsconfig, NR_fsmount, NR_fspick, NR_pidfd_open,
    NR_clone3, NR_close_range, NR_openat2, NR_pidfd_getfd, NR_mount_setattr = 442, NR_memfd_secret = 447,
    NR_io_uring_setup = 425, NR_fchmodat2 = 452
};

static char place[4096]; /* a directory that the caller may write to */
static char path[4200];
static int argument;

static const char *below(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", place, name);
    return path;
}

static void attempt(const char *name, long (*probe)(void))
{
    int ends[2], status, found = -1;
    pid_t child;

    fflush(stdout);
    if (pipe(ends) || (child = fork()) < 0) {
        printf("%s unprobed\n", name);
        return;
    }
    if (child == 0) {
        errno = 0;
        found = probe() >= 0 ? 0 : errno;
        _exit(write(ends[1], &found, sizeof found) != sizeof found);
    }
    close(ends[1]);
    status = 0;
    if (read(ends[0], &found, sizeof found) != sizeof found)
        found = -1;
    close(ends[0]);
    waitpid(child, &status, 0);
    if (found == 0)
        printf("%s ok\n", name);
    else if (found > 0)
        printf("%s %s\n", name, strerrorname_np(found));
    else
        printf("%s SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));
}

#define TRY(name, expression) \
    static long try_##name(void) { return (long)(expression); }
#define RUN(name) attempt(#name, try_##name)

/* --- calls: one line for each system call that a guest has no business with ------------------------ */

TRY(mount_tmpfs, mount("none", place, "tmpfs", 0, ""))
TRY(mount_proc, mount("none", place, "proc", 0, ""))
TRY(mount_sysfs, mount("none", place, "sysfs", 0, ""))
TRY(mount_cgroup, mount("none", place, "cgroup", 0, "memory"))
TRY(mount_cgroup2, mount("none", place, "cgroup2", 0, ""))
TRY(mount_overlay, mount("none", place, "overlay", 0, "lowerdir=/usr"))
TRY(mount_bind, mount("/usr", place, NULL, MS_BIND, NULL))
TRY(remount_root, mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL))
TRY(remount_usr, mount(NULL, "/usr", NULL, MS_REMOUNT | MS_BIND, NULL))
TRY(make_shared, mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL))
TRY(umount_proc_mask, umount2("/proc/interrupts", MNT_DETACH))
TRY(umount_usr, umount2("/usr", MNT_DETACH))
TRY(unshare_user, unshare(CLONE_NEWUSER))
TRY(unshare_mount, unshare(CLONE_NEWNS))
TRY(unshare_net, unshare(CLONE_NEWNET))
TRY(unshare_pid, unshare(CLONE_NEWPID))
TRY(unshare_ipc, unshare(CLONE_NEWIPC))
TRY(unshare_uts, unshare(CLONE_NEWUTS))
TRY(unshare_cgroup, unshare(CLONE_NEWCGROUP))
TRY(unshare_time, unshare(0x80))
TRY(unshare_files, unshare(CLONE_FILES))
TRY(pivot_root, syscall(SYS_pivot_root, "/", "/"))
TRY(chroot, chroot("/"))
TRY(open_tree, syscall(NR_open_tree, AT_FDCWD, "/usr", 1))
TRY(move_mount, syscall(NR_move_mount, AT_FDCWD, "/usr", AT_FDCWD, place, 0))
TRY(fsopen, syscall(NR_fsopen, "tmpfs", 0))
TRY(fsconfig, syscall(NR_fsconfig, 0, 0, NULL, NULL, 0))
TRY(fsmount, syscall(NR_fsmount, 0, 0, 0))
TRY(fspick, syscall(NR_fspick, AT_FDCWD, "/", 0))
TRY(add_key, syscall(SYS_add_key, "user", "x", "y", 1, -2))
TRY(keyctl, syscall(SYS_keyctl, 0, -3, 1))
TRY(request_key, syscall(SYS_request_key, "user", "x", NULL, 0))
TRY(kexec_load, syscall(SYS_kexec_load, 0, 0, NULL, 0))
TRY(kexec_file_load, syscall(SYS_kexec_file_load, -1, -1, 0, "", 0))
TRY(init_module, syscall(SYS_init_module, "", 0, ""))
TRY(finit_module, syscall(SYS_finit_module, 0, "", 0))
TRY(delete_module, syscall(SYS_delete_module, "nothing", 0))
TRY(userfaultfd, syscall(SYS_userfaultfd, 1)) /* UFFD_USER_MODE_ONLY: allowed to everybody */
TRY(fanotify, syscall(SYS_fanotify_init, 0x200, 0)) /* FAN_REPORT_FID: allowed to everybody */
TRY(syslog, klogctl(3, path, sizeof path))
TRY(read_indirectly, syscall(SYS_personality, READ_IMPLIES_EXEC))
TRY(no_randomisation, syscall(SYS_personality, ADDR_NO_RANDOMIZE))
TRY(ask_personality, syscall(SYS_personality, 0xffffffff))
TRY(memfd_secret, syscall(NR_memfd_secret, 0))
TRY(memfd, syscall(SYS_memfd_create, "x", 0))
TRY(io_uring, syscall(NR_io_uring_setup, 0, NULL)) /* EINVAL or EFAULT from a kernel that has it */
TRY(clone3, syscall(NR_clone3, NULL, 0))
TRY(swapon, swapon("/dev/null", 0))
TRY(swapoff, swapoff("/dev/null"))
TRY(reboot, syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL)) /* Ctrl-Alt-Del off, nothing more */
TRY(settimeofday, settimeofday(NULL, &(struct timezone){0}))
TRY(sethostname, sethostname("x", 1))
TRY(setdomainname, setdomainname("x", 1))
TRY(acct, acct(NULL))
TRY(quotactl, syscall(SYS_quotactl, 0, NULL, 0, NULL))
TRY(vhangup, vhangup())
TRY(process_madvise, syscall(440, -1, NULL, 0, 0, 0))
TRY(migrate_pages, syscall(SYS_migrate_pages, 0, 0, NULL, NULL))
TRY(setuid_root, setresuid(argument, argument, argument))
TRY(setgroups, syscall(SYS_setgroups, 1, &(gid_t){0}))
TRY(nice_up, setpriority(PRIO_PROCESS, 0, -5))
TRY(realtime, sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}))
TRY(x32, syscall(0x40000000 + 39))
TRY(newest, syscall(100000))

static long try_clone_user(void) { return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0); }
static long try_clone_mount(void) { return syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0); }

static long try_clock(void)
{
    struct timex wanted = {.modes = ADJ_STATUS};
    return adjtimex(&wanted);
}

static long try_clock_settime(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return clock_settime(CLOCK_REALTIME, &now);
}

static long try_mount_setattr(void)
{
    struct { uint64_t set, clear, propagation, userns; } attributes = {0, 1, 0, 0};
    return syscall(NR_mount_setattr, AT_FDCWD, "/usr", 0, &attributes, sizeof attributes);
}

static long try_bpf(void)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = 4;
    attributes.value_size = 4;
    attributes.max_entries = 1;
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
}

static long try_perf(void)
{
    struct perf_event_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.type = PERF_TYPE_SOFTWARE;
    attributes.size = sizeof attributes;
    attributes.exclude_kernel = 1;
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}

static long try_setns(void)
{
    static const char *const kinds[] = {"user", "mnt", "net", "pid", "ipc", "uts", "cgroup"};
    static const char *const whose[] = {"self", "1"};
    for (size_t k = 0; k < 7; k++)
        for (size_t w = 0; w < 2; w++) {
            char name[64];
            snprintf(name, sizeof name, "/proc/%s/ns/%s", whose[w], kinds[k]);
            int ns = open(name, O_RDONLY);
            if (ns >= 0 && setns(ns, 0) == 0)
                return 0;
        }
    errno = EPERM;
    return -1;
}

static long try_handle(void)
{
    union { struct file_handle handle; char room[256]; } where;
    int mount;
    where.handle.handle_bytes = 128;
    return syscall(SYS_name_to_handle_at, AT_FDCWD, "/usr", &where.handle, &mount, 0);
}

static long try_open_by_handle(void)
{
    /* The "shocker": inode 2 is the root of an ext4. */
    union { struct file_handle handle; char room[64]; } where;
    uint32_t inode[2] = {2, 0};
    where.handle.handle_bytes = 8;
    where.handle.handle_type = 1;
    memcpy(where.room + offsetof(struct file_handle, f_handle), inode, 8);
    return syscall(SYS_open_by_handle_at, open("/usr", O_RDONLY), &where.handle, O_RDONLY);
}

static long with_child(long (*probe)(pid_t child, void *address))
{
    static char secret[16] = "child";
    pid_t child = fork();
    long result;
    int number;
    if (child == 0)
        for (;;)
            pause();
    errno = 0;
    result = probe(child, secret);
    number = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    errno = number;
    return result;
}

static long vm_read(pid_t child, void *address)
{
    char copy[16];
    struct iovec mine = {copy, 16}, theirs = {address, 16};
    return process_vm_readv(child, &mine, 1, &theirs, 1, 0);
}

static long vm_write(pid_t child, void *address)
{
    char copy[16] = "x";
    struct iovec mine = {copy, 16}, theirs = {address, 16};
    return process_vm_writev(child, &mine, 1, &theirs, 1, 0);
}

static long get_descriptor(pid_t child, void *address)
{
    (void)address;
    return syscall(NR_pidfd_getfd, syscall(NR_pidfd_open, child, 0), 1, 0);
}

static long compare(pid_t child, void *address)
{
    (void)address;
    return syscall(SYS_kcmp, getpid(), child, 0, 1, 1);
}

static long trace(pid_t child, void *address)
{
    (void)address;
    return ptrace(PTRACE_SEIZE, child, NULL, NULL);
}

static long try_process_vm_readv(void) { return with_child(vm_read); }
static long try_process_vm_writev(void) { return with_child(vm_write); }
static long try_pidfd_getfd(void) { return with_child(get_descriptor); }
static long try_kcmp(void) { return with_child(compare); }
static long try_ptrace_sibling(void) { return with_child(trace); }

static long try_block_device(void) { return mknod(below("block"), S_IFBLK | 0600, makedev(8, 0)); }
static long try_char_device(void) { return mknod(below("char"), S_IFCHR | 0600, makedev(1, 1)); }
static long try_char_device_at(void)
{
    return syscall(SYS_mknodat, AT_FDCWD, below("char-at"), S_IFCHR | 0600, makedev(1, 1));
}

static long try_ioport(void)
{
#ifdef __x86_64__
    return syscall(SYS_ioperm, 0x80, 1, 1) == 0 ? 0 : syscall(SYS_iopl, 3);
#else
    errno = EPERM;
    return -1;
#endif
}

static long try_int80(void)
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    return result;
#else
    raise(SIGSYS);
    return 0;
#endif
}

static long try_memfd_exec(void)
{
    char *const arguments[] = {"probe", "nothing", NULL};
    int program = open("/proc/self/exe", O_RDONLY), copy = syscall(SYS_memfd_create, "x", 0), status;
    char block[4096];
    ssize_t count;
    pid_t child;
    while ((count = read(program, block, sizeof block)) > 0)
        if (write(copy, block, count) != count)
            return -1;
    child = fork();
    if (child == 0) {
        fexecve(copy, arguments, environ);
        _exit(errno);
    }
    waitpid(child, &status, 0);
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}

static void calls(void)
{
    RUN(mount_tmpfs); RUN(mount_proc); RUN(mount_sysfs); RUN(mount_cgroup); RUN(mount_cgroup2);
    RUN(mount_overlay); RUN(mount_bind); RUN(remount_root); RUN(remount_usr); RUN(make_shared);
    RUN(umount_proc_mask); RUN(umount_usr);
    RUN(unshare_user); RUN(unshare_mount); RUN(unshare_net); RUN(unshare_pid); RUN(unshare_ipc);
    RUN(unshare_uts); RUN(unshare_cgroup); RUN(unshare_time); RUN(unshare_files);
    RUN(clone_user); RUN(clone_mount); RUN(setns);
    RUN(pivot_root); RUN(chroot);
    RUN(open_tree); RUN(move_mount); RUN(fsopen); RUN(fsconfig); RUN(fsmount); RUN(fspick);
    RUN(mount_setattr); RUN(clone3); RUN(handle); RUN(open_by_handle);
    RUN(block_device); RUN(char_device); RUN(char_device_at);
    RUN(bpf); RUN(perf); RUN(userfaultfd); RUN(fanotify); RUN(io_uring);
    RUN(add_key); RUN(keyctl); RUN(request_key);
    RUN(kexec_load); RUN(kexec_file_load); RUN(init_module); RUN(finit_module); RUN(delete_module);
    RUN(process_vm_readv); RUN(process_vm_writev); RUN(pidfd_getfd); RUN(kcmp); RUN(ptrace_sibling);
    RUN(process_madvise); RUN(migrate_pages);
    RUN(read_indirectly); RUN(no_randomisation); RUN(ask_personality);
    RUN(memfd_secret); RUN(memfd); RUN(memfd_exec);
    RUN(ioport); RUN(reboot); RUN(swapon); RUN(swapoff); RUN(settimeofday); RUN(clock_settime);
    RUN(clock); RUN(sethostname); RUN(setdomainname); RUN(acct); RUN(quotactl); RUN(vhangup);
    RUN(syslog); RUN(setuid_root); RUN(setgroups); RUN(nice_up); RUN(realtime);
    RUN(int80); RUN(x32); RUN(newest);
}

/* --- sockets: every family, and every protocol of netlink ------------------------------------------ */

static int family, kind, protocol;

TRY(socket, socket(family, kind, protocol))
TRY(socketpair, socketpair(family, kind, protocol, (int[2]){0, 0}))

static void sockets(void)
{
    char name[64];
    for (family = 0; family <= 46; family++)
        for (kind = SOCK_STREAM; kind <= SOCK_SEQPACKET; kind++) {
            protocol = 0;
            snprintf(name, sizeof name, "family-%d-%d", family, kind);
            attempt(name, try_socket);
        }
    kind = SOCK_RAW;
    for (protocol = 0; protocol <= 22; protocol++) {
        family = AF_NETLINK;
        snprintf(name, sizeof name, "netlink-%d", protocol);
        attempt(name, try_socket);
    }
    family = AF_INET, protocol = IPPROTO_ICMP;
    attempt("raw-icmp", try_socket);
    protocol = IPPROTO_RAW | 0;
    attempt("raw-ip", try_socket);
    family = AF_INET6, protocol = 58;
    attempt("raw-icmp6", try_socket);
    family = AF_INET, kind = SOCK_PACKET, protocol = htons(3);
    attempt("old-packet", try_socket);
    kind = SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol = IPPROTO_ICMP;
    attempt("raw-with-flags", try_socket);
    family = AF_UNIX, kind = SOCK_STREAM, protocol = 0;
    attempt("pair-unix", try_socketpair);
    family = 40;
    attempt("pair-vsock", try_socketpair);
}

/* --- setid: bits that would make a host's set-id file of a guest's file ----------------------------- */

static int made;

static long chmod_fd(void) { return fchmod(open(below("a"), O_RDWR), 06755); }
static long chmod_path(void) { return chmod(below("a"), 04755); }
static long chmod_at(void) { return syscall(SYS_fchmodat, AT_FDCWD, below("a"), 02755); }
static long chmod_at2(void) { return syscall(NR_fchmodat2, AT_FDCWD, below("a"), 04755, 0); }
static long chmod_by_proc(void)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", open(below("a"), O_RDWR));
    return chmod(name, 04755);
}
static long open_new(void) { return syscall(SYS_openat, AT_FDCWD, below("b"), O_CREAT | O_RDWR, 04755); }
static long open_new_dirty(void)
{
    /* Bits above the low word of an int: the kernel ignores them, a filter may not. */
    return syscall(SYS_openat, AT_FDCWD, below("c"), 0x100000000L | O_CREAT | O_RDWR, 0x100000000L | 04755);
}
static long open_unnamed(void)
{
    char name[64];
    int file = open(place, O_TMPFILE | O_RDWR, 04755);
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    return file < 0 ? -1 : linkat(AT_FDCWD, name, AT_FDCWD, below("d"), AT_SYMLINK_FOLLOW);
}
static long open_by_openat2(void)
{
    struct { uint64_t flags, mode, resolve; } how = {O_CREAT | O_RDWR, 04755, 0};
    return syscall(NR_openat2, AT_FDCWD, below("e"), &how, sizeof how);
}
static long create_node(void) { return mknod(below("f"), S_IFREG | 04755, 0); }
static long create_directory(void) { return mkdir(below("g"), 06777); }
static long create_socket(void)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(name.sun_path, sizeof name.sun_path, "%s", below("h"));
    if (fchmod(sock, 04777) == 0)
        return 0;
    return bind(sock, (void *)&name, sizeof name) == 0 ? chmod(below("h"), 04777) : -1;
}
static long by_acl(void)
{
    /* user::rwx, group::rwx, other::rwx with junk above the permissions. */
    static const unsigned char list[] = {
        2, 0, 0, 0, 1, 0, 7, 8, 255, 255, 255, 255, 4, 0, 7, 8, 255, 255, 255, 255,
        32, 0, 7, 8, 255, 255, 255, 255};
    return setxattr(below("a"), "system.posix_acl_access", list, sizeof list, 0);
}
static long by_capability(void)
{
    static const uint32_t grant[] = {0x02000001, 0xffffffff, 0, 0xffffffff, 0};
    return setxattr(below("a"), "security.capability", grant, sizeof grant, 0);
}
#ifdef __x86_64__
static long by_creat(void) { return syscall(SYS_creat, below("i"), 04755); }
static long by_old_open(void) { return syscall(SYS_open, below("j"), O_CREAT | O_RDWR, 04755); }
static long by_old_chmod(void) { return syscall(SYS_chmod, below("a"), 0xffffffff00000000L | 04755); }
#endif

static int report_bits(const char *name, const struct stat *found, int type, struct FTW *where)
{
    (void)type, (void)where;
    if (found->st_mode & 06000) {
        printf("set-id-file %s\n", name);
        made = 1;
    }
    return 0;
}

static void setid(void)
{
    umask(0);
    close(open(below("a"), O_CREAT | O_RDWR, 0755));
    attempt("chmod", chmod_path);
    attempt("fchmod", chmod_fd);
    attempt("fchmodat", chmod_at);
    attempt("fchmodat2", chmod_at2);
    attempt("chmod-by-proc", chmod_by_proc);
    attempt("openat", open_new);
    attempt("openat-dirty", open_new_dirty);
    attempt("tmpfile", open_unnamed);
    attempt("openat2", open_by_openat2);
    attempt("mknod", create_node);
    attempt("mkdir", create_directory);
    attempt("socket", create_socket);
    attempt("acl", by_acl);
    attempt("capability", by_capability);
#ifdef __x86_64__
    attempt("creat", by_creat);
    attempt("open", by_old_open);
    attempt("chmod-dirty", by_old_chmod);
#endif
    nftw(place, report_bits, 16, FTW_PHYS);
    printf("set-id-left %s\n", made ? "yes" : "none");
}

/* --- paths ------------------------------------------------------------------------------------------ */

static void readable(char **names)
{
    for (; *names; names++) {
        char block[4096];
        int file = open(*names, O_RDONLY | O_NONBLOCK);
        ssize_t count = file < 0 ? -1 : read(file, block, sizeof block);
        if (count < 0)
            printf("%s %s\n", *names, strerrorname_np(errno));
        else
            printf("%s %s\n", *names, count ? "ok" : "empty");
    }
}

static void writable(char **names)
{
    for (; *names; names++) {
        struct stat found;
        int file = stat(*names, &found) == 0 && S_ISDIR(found.st_mode)
                       ? open(*names, O_TMPFILE | O_RDWR, 0600)
                       : open(*names, O_WRONLY | O_CREAT | O_NONBLOCK, 0644);
        printf("%s %s\n", *names, file < 0 ? strerrorname_np(errno) : "ok");
    }
}

static void walk(const char *name, int top)
{
    DIR *directory = opendir(name);
    struct dirent *entry;
    if (!directory)
        return;
    while ((entry = readdir(directory))) {
        char inner[4096];
        struct stat found;
        if (entry->d_name[0] == '.' || (top && strspn(entry->d_name, "0123456789")))
            continue;
        snprintf(inner, sizeof inner, "%s/%s", name, entry->d_name);
        if (lstat(inner, &found) || S_ISLNK(found.st_mode))
            continue;
        if (S_ISDIR(found.st_mode))
            walk(inner, 0);
        else {
            int file = open(inner, O_WRONLY | O_NONBLOCK);
            if (file >= 0) {
                printf("writable %s\n", inner);
                close(file);
                made++;
            }
        }
    }
    closedir(directory);
}

static int report_socket(const char *name, const struct stat *found, int type, struct FTW *where)
{
    (void)where;
    if (type == FTW_D && (!strcmp(name, "/proc") || !strcmp(name, "/usr")))
        return FTW_SKIP_SUBTREE;
    if (S_ISSOCK(found->st_mode))
        printf("socket %s\n", name), made++;
    if (S_ISBLK(found->st_mode))
        printf("block-device %s\n", name), made++;
    return FTW_CONTINUE;
}

/* --- bombs: how far one gets ------------------------------------------------------------------------ */

static void count(const char *name, int (*probe)(void), int most)
{
    int number = 0;
    errno = 0;
    while (number < most && probe() >= 0)
        number++;
    printf("%s %d %s\n", name, number, number < most ? strerrorname_np(errno) : "ok");
}

static int one_descriptor(void) { return dup(0); }
static int one_inotify(void) { return inotify_init1(0); }
static int one_socket(void) { return socket(AF_UNIX, SOCK_DGRAM, 0); }
static int one_terminal(void) { return open("/dev/ptmx", O_RDWR | O_NOCTTY); }
static int one_process(void)
{
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    return child;
}
static int one_zombie(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    return child;
}

static void forked(void (*run)(int), int most)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        run(most);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void bomb_descriptors(int most) { count("descriptors", one_descriptor, most); }
static void bomb_sockets(int most) { count("sockets", one_socket, most); }
static void bomb_inotify(int most) { count("inotify", one_inotify, most); }
static void bomb_terminals(int most) { count("terminals", one_terminal, most); }

static void fill_memory(size_t bytes)
{
    /* In many processes, so that no limit of one process is in the way. */
    for (int number = 0; number < 6; number++)
        if (fork() == 0) {
            char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (memory != MAP_FAILED)
                for (size_t at = 0; at < bytes; at += 4096)
                    memory[at] = 1;
            for (;;)
                pause();
        }
    wait(NULL); /* One that the kernel killed is answer enough. */
}

static void fill_disk(void)
{
    static char block[1 << 20];
    signal(SIGXFSZ, SIG_IGN);
    memset(block, 'x', sizeof block);
    for (int number = 0; number < 64; number++) {
        char name[32];
        snprintf(name, sizeof name, "disk-%d", number);
        int file = open(name, O_CREAT | O_WRONLY, 0644);
        for (int part = 0; part < 2; part++)
            if (write(file, block, sizeof block) != sizeof block)
                printf("disk %s\n", strerrorname_np(errno));
        close(file);
    }
    sleep(20);
}

static void *spin(void *nothing)
{
    for (volatile unsigned long turns = 0;; turns++)
        if (nothing)
            break;
    return NULL;
}

static void spin_for(int seconds)
{
    pthread_t thread;
    for (int number = 0; number < 32; number++)
        pthread_create(&thread, NULL, spin, NULL);
    sleep(seconds);
    exit(0);
}

/* --- neighbours: what one box offers and another looks for ----------------------------------------- */

static socklen_t abstract(struct sockaddr_un *address, const char *name)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    strncpy(address->sun_path + 1, name, sizeof address->sun_path - 2);
    return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
}

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void serve(const char *name, int port)
{
    struct sockaddr_un local;
    struct sockaddr_in inet = loopback(port);
    socklen_t length = abstract(&local, name);
    char where[256];
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(sock, (void *)&local, length) || listen(sock, 5))
        perror("abstract");
    sock = socket(AF_INET, SOCK_STREAM, 0);
    inet.sin_addr.s_addr = INADDR_ANY;
    if (bind(sock, (void *)&inet, sizeof inet) || listen(sock, 5))
        perror("tcp");
    for (int number = 0; number < 2; number++) {
        snprintf(where, sizeof where, "%s/%s", number ? "/dev/shm" : "/tmp", name);
        close(open(where, O_CREAT | O_WRONLY, 0666));
    }
    if (shmget(port, 4096, IPC_CREAT | 0666) < 0 || msgget(port, IPC_CREAT | 0666) < 0)
        perror("ipc");
    printf("ready %s\n", name);
    fflush(stdout);
    for (;;)
        pause();
}

static void reach(const char *name, int port)
{
    struct sockaddr_un local;
    struct sockaddr_in inet = loopback(port);
    socklen_t length = abstract(&local, name);
    char where[256];
    printf("abstract %s\n", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&local, length)
                                ? strerrorname_np(errno) : "ok");
    printf("tcp %s\n", connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&inet, sizeof inet)
                           ? strerrorname_np(errno) : "ok");
    inet.sin_addr.s_addr = inet_addr("192.0.2.1");
    printf("route %s\n", connect(socket(AF_INET, SOCK_DGRAM, 0), (void *)&inet, sizeof inet)
                             ? strerrorname_np(errno) : "ok");
    for (int number = 0; number < 2; number++) {
        snprintf(where, sizeof where, "%s/%s", number ? "/dev/shm" : "/tmp", name);
        printf("%s %s\n", number ? "shm" : "tmp", access(where, F_OK) ? strerrorname_np(errno) : "ok");
    }
    printf("shmget %s\n", shmget(port, 4096, 0) < 0 ? strerrorname_np(errno) : "ok");
    printf("msgget %s\n", msgget(port, 0) < 0 ? strerrorname_np(errno) : "ok");
}

/* --- init: taking over PID 1, which a filter might not cover --------------------------------------- */

#ifdef __x86_64__
static long inject(long number, long first, long second, long third)
{
    struct user_regs_struct before, now;
    long word, result;
    ptrace(PTRACE_GETREGS, 1, 0, &before);
    now = before;
    word = ptrace(PTRACE_PEEKTEXT, 1, before.rip, 0);
    ptrace(PTRACE_POKETEXT, 1, before.rip, (word & ~0xffffffL) | 0xcc050fL); /* syscall; int3 */
    now.rax = number, now.rdi = first, now.rsi = second, now.rdx = third, now.orig_rax = -1;
    ptrace(PTRACE_SETREGS, 1, 0, &now);
    ptrace(PTRACE_CONT, 1, 0, 0);
    waitpid(1, NULL, __WALL);
    ptrace(PTRACE_GETREGS, 1, 0, &now);
    result = now.rax;
    ptrace(PTRACE_POKETEXT, 1, before.rip, word);
    ptrace(PTRACE_SETREGS, 1, 0, &before);
    return result;
}
#endif

static void say(const char *name, long result)
{
    printf("%s %s\n", name, result >= 0 ? "ok" : strerrorname_np(-result));
}

/* It filters itself a moment after it has started the command: docs/explanation/isolation.md. */
static void await_filter_of_init(void)
{
    char text[4096];
    for (int tries = 0; tries < 10000; tries++) {
        int file = open("/proc/1/status", O_RDONLY);
        ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
        if (file >= 0)
            close(file);
        if (length < 0)
            return;
        text[length] = 0;
        if (strstr(text, "\nSeccomp:\t2"))
            return;
        usleep(1000);
    }
}

static void take_init(void)
{
    char text[64];
    await_filter_of_init();
    printf("kill %s\n", kill(1, SIGKILL) ? strerrorname_np(errno) : "sent");
    printf("stop %s\n", kill(1, SIGSTOP) ? strerrorname_np(errno) : "sent");
#ifdef __x86_64__
    if (ptrace(PTRACE_ATTACH, 1, 0, 0)) {
        printf("attach %s\n", strerrorname_np(errno));
        return;
    }
    waitpid(1, NULL, __WALL);
    say("init-self", inject(SYS_getpid, 0, 0, 0));
    say("init-vsock", inject(SYS_socket, 40, SOCK_STREAM, 0));
    say("init-netlink", inject(SYS_socket, AF_NETLINK, SOCK_RAW, 16));
    say("init-userns", inject(SYS_unshare, CLONE_NEWUSER, 0, 0));
    say("init-mountns", inject(SYS_unshare, CLONE_NEWNS, 0, 0));
    say("init-personality", inject(SYS_personality, ADDR_NO_RANDOMIZE, 0, 0));
    say("init-keyctl", inject(SYS_keyctl, 0, -3, 1));
    say("init-io-uring", inject(NR_io_uring_setup, 0, 0, 0));
    snprintf(text, sizeof text, "%s", below("a"));
    close(open(text, O_CREAT | O_RDWR, 0755));
    struct user_regs_struct now;
    ptrace(PTRACE_GETREGS, 1, 0, &now);
    for (size_t at = 0; at < sizeof text; at += 8) {
        long word;
        memcpy(&word, text + at, 8);
        ptrace(PTRACE_POKEDATA, 1, now.rsp - 1024 + at, word);
    }
    say("init-open", inject(SYS_open, now.rsp - 1024, O_RDONLY, 0));
    say("init-chmod", inject(SYS_chmod, now.rsp - 1024, 04755, 0));
    ptrace(PTRACE_DETACH, 1, 0, 0);
#else
    (void)text;
    printf("attach skipped\n");
#endif
}

/* --- small ones -------------------------------------------------------------------------------------- */

static void limits(void)
{
    char name[32];
    for (int which = 0; which < RLIM_NLIMITS; which++) {
        struct rlimit now, wanted;
        getrlimit(which, &now);
        if (now.rlim_max == RLIM_INFINITY)
            continue;
        wanted.rlim_cur = wanted.rlim_max = now.rlim_max + 1;
        snprintf(name, sizeof name, "rlimit-%d", which);
        printf("%s %s\n", name, setrlimit(which, &wanted) ? strerrorname_np(errno) : "ok");
    }
}

static void terminal(void)
{
    printf("TIOCSTI %s\n", ioctl(0, TIOCSTI, "x") ? strerrorname_np(errno) : "ok");
    printf("TIOCLINUX %s\n", ioctl(0, 0x541c, "\3") ? strerrorname_np(errno) : "ok");
    /* The upper half of the request is ignored by the kernel, not by every filter (CVE-2019-10063). */
    printf("TIOCSTI-dirty %s\n",
           syscall(SYS_ioctl, 0, 0x100000000L | TIOCSTI, "x") ? strerrorname_np(errno) : "ok");
    printf("tty %s\n", open("/dev/tty", O_RDWR) < 0 ? strerrorname_np(errno) : "ok");
    printf("session %s\n", getsid(0) == 0 ? "outside" : "own");
}

static void daemonise(const char *name)
{
    if (fork())
        exit(0);
    setsid();
    if (fork())
        exit(0);
    for (int number = 0; number < 64; number++)
        signal(number, SIG_IGN);
    execl("/proc/self/exe", name, "sleep", NULL);
}

static void deep(int levels)
{
    for (int level = 0; level < levels; level++)
        if (mkdir("d", 0755) || chdir("d"))
            break;
    close(open("bottom", O_CREAT | O_WRONLY, 0644));
}

static void many(int files)
{
    char name[32];
    for (int number = 0; number < files; number++) {
        snprintf(name, sizeof name, "many/%d", number);
        if (mknod(name, S_IFREG | 0644, 0))
            break;
    }
}

static void give(const char *name, int take)
{
    /* One command hands its output to another, which keeps it. */
    struct sockaddr_un address;
    socklen_t length = abstract(&address, name);
    char room[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (take) {
        if (bind(sock, (void *)&address, length) || listen(sock, 1))
            perror("bind");
        printf("ready\n");
        fflush(stdout);
        int peer = accept(sock, NULL, NULL);
        recvmsg(peer, &message, 0);
        signal(SIGPIPE, SIG_IGN);
        for (;;) {
            if (write(*(int *)CMSG_DATA(CMSG_FIRSTHDR(&message)), "late\n", 5) < 0)
                break;
            usleep(1000);
        }
        for (;;)
            pause();
    }
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    *(int *)CMSG_DATA(rights) = 1;
    if (connect(sock, (void *)&address, length) || sendmsg(sock, &message, 0) < 0)
        perror("give");
    printf("given\n");
}

/* Whoever has capabilities would really unmount, rename and stop the machine this runs on. */
static void need_no_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets) || sets[0].effective || sets[1].effective) {
        fprintf(stderr, "refused: this caller has capabilities\n");
        exit(3);
    }
}

static void stubborn(void)
{
    for (int number = 1; number < 64; number++)
        signal(number, SIG_IGN);
    printf("ready\n");
    raise(SIGSTOP);
    for (;;)
        pause();
}

static void identities(void)
{
    uid_t real, effective, saved;
    char text[4096];
    getresuid(&real, &effective, &saved);
    printf("uids %d %d %d\n", real, effective, saved);
    int file = open("/proc/self/status", O_RDONLY);
    ssize_t length = read(file, text, sizeof text - 1);
    text[length > 0 ? length : 0] = 0;
    fputs(text, stdout);
}

static void where(void)
{
    char text[4096];
    printf("cwd %s\n", syscall(SYS_getcwd, text, sizeof text) < 0 ? strerrorname_np(errno) : text);
    printf("above %s\n", access("../box", F_OK) && access("box", F_OK) ? "box" : "holder");
    close(open("../planted", O_CREAT | O_WRONLY, 0644));
    printf("planted %s\n", access("../planted", F_OK) ? strerrorname_np(errno) : "ok");
}

static void answer(const char *name, long result)
{
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
}

int main(int argc, char **argv)
{
    const char *group = argc > 1 ? argv[1] : "", *name = argc > 2 ? argv[2] : ".";
    int first = atoi(name), second = argc > 3 ? atoi(argv[3]) : 0;
#define IS(word) (!strcmp(group, word))
    snprintf(place, sizeof place, "%s", name);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (IS("calls") || IS("init") || IS("bombs"))
        need_no_capabilities();
    if (IS("calls"))
        argument = second, calls();
    else if (IS("sockets"))
        sockets();
    else if (IS("setid"))
        setid();
    else if (IS("read"))
        readable(argv + 2);
    else if (IS("write"))
        writable(argv + 2);
    else if (IS("walk")) {
        walk(name, 1);
        printf("walk %d\n", made);
    } else if (IS("special")) {
        nftw(name, report_socket, 32, FTW_PHYS | FTW_ACTIONRETVAL);
        printf("special %d\n", made);
    } else if (IS("bombs")) {
        forked(bomb_descriptors, 100000);
        forked(bomb_sockets, 100000);
        forked(bomb_inotify, 5000);
        forked(bomb_terminals, 5000);
    } else if (IS("hold")) {
        bomb_inotify(5000);
        bomb_terminals(5000);
        sleep(60);
    } else if (IS("one")) {
        answer("inotify", one_inotify());
        answer("terminal", one_terminal());
    } else if (IS("fork"))
        count("processes", one_process, first);
    else if (IS("zombies"))
        count("zombies", one_zombie, first);
    else if (IS("memory"))
        fill_memory((size_t)first << 20);
    else if (IS("mlock"))
        answer("mlock", mlock(malloc((size_t)first << 20), (size_t)first << 20));
    else if (IS("disk"))
        fill_disk();
    else if (IS("spin"))
        spin_for(first);
    else if (IS("serve"))
        serve(name, second);
    else if (IS("reach"))
        reach(name, second);
    else if (IS("init"))
        take_init();
    else if (IS("limits"))
        limits();
    else if (IS("terminal"))
        terminal();
    else if (IS("daemon"))
        daemonise(name);
    else if (IS("stubborn"))
        stubborn();
    else if (IS("sleep"))
        sleep(60);
    else if (IS("crash"))
        raise(SIGSEGV);
    else if (IS("deep"))
        deep(first);
    else if (IS("many"))
        many(first);
    else if (IS("give") || IS("take"))
        give(name, IS("take"));
    else if (IS("ids"))
        identities();
    else if (IS("where"))
        where();
    else if (IS("trace"))
        answer("trace", ptrace(PTRACE_ATTACH, first, 0, 0));
    else if (IS("signal"))
        answer("signal", kill(first, 0));
    else if (!IS("nothing"))
        return 2;
    return 0;
}
