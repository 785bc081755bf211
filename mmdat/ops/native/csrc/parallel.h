// Work for many threads, whose exceptions arrive in Python: one that left an OpenMP region or a C function would end
// the process.
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>
#include <new>
#include <string>

// Where a part begins, of `count` things that are cut into equal parts.
inline int64_t part_of(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

// Calls work(thread, number of threads) in `threads` threads at most, and throws what one of them threw.
template <typename Work>
void parallel(int threads, const Work& work) {
    std::exception_ptr error;
#pragma omp parallel num_threads(threads)
    try {
        work(omp_get_thread_num(), omp_get_num_threads());
    } catch (...) {
#pragma omp critical
        error = std::current_exception();
    }
    if (error) std::rethrow_exception(error);
}

// Calls work(). Returns nullptr, or what went wrong, to be read before the next call in the same thread.
template <typename Work>
const char* message_of_failure(const Work& work) noexcept {
    static thread_local std::string message;
    try {
        work();
        return nullptr;
    } catch (const std::bad_alloc&) {
        return "there is not enough memory";
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    } catch (...) {
        return "unknown exception";
    }
}
