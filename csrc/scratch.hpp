// What compilers should not know of memory, and scratch of a thread. In a shared library the address of a thread_local
// variable comes from a call, and a compiler that sees through to the variable calls again wherever it wants the address: in
// the inner loop of a kernel, with all vector registers in memory meanwhile. So it is asked for once, where this is called,
// and where it came from is hidden.
#pragma once

namespace puna {

// Hides from the compiler where `p` points to, so that it takes what lies there from memory.
template <class T>
static inline void hide(T*& p) {
#if defined(__GNUC__)
  asm volatile("" : "+r"(p));
#endif
}

// The calling thread's own T, which keeps nothing that anybody else may rely on.
template <class T>
static inline T& thread_scratch() {
  static thread_local T scratch;
  T* p = &scratch;
  hide(p);
  return *p;
}

}  // namespace puna
