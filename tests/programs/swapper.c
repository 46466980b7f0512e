/* Swap two names for as long as the reader of our standard output lives: the attacker of the files tests.
 *
 * usage: swapper DIRECTORY A B
 *
 * A is a directory of the tree under test, B a link to a directory outside of it. Each renameat2 with
 * RENAME_EXCHANGE is atomic: there is no moment at which either name is missing. A pause of a random,
 * short length between two exchanges makes both states long enough to be met and the race wide open.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    unsigned int state = 12345;
    volatile unsigned int spin;
    int directory;

    if (argc != 4)
        return 2;
    /* Whoever started us may be killed; nothing must go on swapping then. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    directory = open(argv[1], O_PATH | O_DIRECTORY);
    if (directory < 0) {
        perror("open");
        return 1;
    }
    if (write(1, "ready\n", 6) != 6)
        return 1;
    for (;;) {
        if (syscall(SYS_renameat2, directory, argv[2], directory, argv[3], 2 /* EXCHANGE */) != 0) {
            /* The test removes and makes the names anew now and then. */
            usleep(10);
        }
        state = state * 1103515245u + 12345u;
        for (spin = (state >> 16) % 4096; spin > 0; spin--)
            ;
    }
}
