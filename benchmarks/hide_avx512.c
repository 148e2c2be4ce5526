/* Hides AVX-512, AVX-VNNI and AMX from a process, to measure what CPUs with AVX2 alone would run.

       gcc -O2 -shared -fPIC benchmarks/hide_avx512.c -o hide_avx512.so
       LD_PRELOAD=$PWD/hide_avx512.so \
       GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ \
           python benchmarks/train_step.py

   It is for Linux on x86-64, and for CPUs that can make the instruction CPUID fault (`cpuid_fault`
   in /proc/cpuinfo). Libraries choose their code by what CPUID answers. Here it faults, and the
   handler of the fault answers in its place, without the bits of these instructions. glibc asks
   before this library is there, so it has to be told by its tunables. The scripts still print the
   instructions of /proc/cpuinfo, where nothing is hidden. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* Codes of the system call arch_prctl(2), and of the instruction CPUID. */
#define ARCH_SET_CPUID 0x1012
#define MAY_RUN 1
#define MUST_FAULT 0
static const unsigned char CPUID[2] = {0x0f, 0xa2};

static struct sigaction earlier_handler;

static unsigned bits(const int *numbers, int count) {
  unsigned mask = 0;
  for (int i = 0; i < count; i++) mask |= 1u << numbers[i];
  return mask;
}
#define BITS(...) \
  bits((int[]){__VA_ARGS__}, sizeof((int[]){__VA_ARGS__}) / sizeof(int))

static void answer_cpuid(int signal_number, siginfo_t *info, void *context) {
  (void)signal_number;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const void *instruction = (const void *)registers[REG_RIP];

  /* Any other fault happens again, with the handler that was there before. */
  if (info->si_code != SI_KERNEL || memcmp(instruction, CPUID, sizeof CPUID) != 0) {
    sigaction(SIGSEGV, &earlier_handler, NULL);
    return;
  }

  unsigned leaf = registers[REG_RAX];
  unsigned subleaf = registers[REG_RCX];
  unsigned a, b, c, d;
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, MAY_RUN);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, MUST_FAULT);

  /* The features of leaf 7 (Intel's Software Developer's Manual, volume 2, CPUID). */
  if (leaf == 7 && subleaf == 0) {
    b &= ~BITS(16, 17, 21, 26, 27, 28, 30, 31); /* AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL */
    c &= ~BITS(1, 6, 11, 12, 14);               /* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    d &= ~BITS(2, 3, 8, 22, 23, 24, 25);        /* 4VNNIW, 4FMAPS, VP2INTERSECT; AMX, FP16 */
  }
  if (leaf == 7 && subleaf == 1) {
    a &= ~BITS(4, 5, 21, 23);    /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
    d &= ~BITS(4, 5, 8, 10, 19); /* AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
  }

  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += sizeof CPUID;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer_cpuid;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &earlier_handler);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, MUST_FAULT) != 0)
    perror("hide_avx512: this system cannot make CPUID fault, so nothing is hidden");
}
