// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Symbol visibility of the public API: everything else is hidden.
#pragma once

#if defined(_WIN32) && !defined(SMARTSPEC_STATIC)
#ifdef smartspec_EXPORTS
#define SMARTSPEC_API __declspec(dllexport)
#else
#define SMARTSPEC_API __declspec(dllimport)
#endif
#elif !defined(_WIN32)
#define SMARTSPEC_API __attribute__((visibility("default")))
#else
#define SMARTSPEC_API
#endif
