//! Tuples as the arguments of a task function: what `starmap` takes.

use crate::task::Task;

/// What [`Pool::starmap`](crate::Pool::starmap) makes tasks with: a function of several parameters, which are the parts of
/// a tuple, as `add::task`, or a closure that takes the tuple itself.
///
/// Nobody implements it; closures and functions have it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not make a task of a `{Args}`",
    label = "takes other arguments",
    note = "write `pool.starmap(add::task, pairs)`, or a closure: `|(a, b)| add::task(a, b)`"
)]
pub trait MakeTask<Args, F, A, Form> {
    #[doc(hidden)]
    fn make(&mut self, args: Args) -> Task<F, A>;
}

/// A closure that takes the tuple.
#[doc(hidden)]
pub struct Whole;

/// A function whose parameters are the tuple's parts.
#[doc(hidden)]
pub struct Parts;

impl<M, Args, F, A> MakeTask<Args, F, A, Whole> for M
where
    M: FnMut(Args) -> Task<F, A>,
{
    fn make(&mut self, args: Args) -> Task<F, A> {
        self(args)
    }
}

macro_rules! parts {
    ($($part:ident)+) => {
        impl<M, F, A, $($part),+> MakeTask<($($part,)+), F, A, Parts> for M
        where
            M: FnMut($($part),+) -> Task<F, A>,
        {
            #[allow(non_snake_case, reason = "each part is named by its type")]
            fn make(&mut self, ($($part,)+): ($($part,)+)) -> Task<F, A> {
                self($($part),+)
            }
        }
    };
}

parts!(P1);
parts!(P1 P2);
parts!(P1 P2 P3);
parts!(P1 P2 P3 P4);
parts!(P1 P2 P3 P4 P5);
parts!(P1 P2 P3 P4 P5 P6);
parts!(P1 P2 P3 P4 P5 P6 P7);
parts!(P1 P2 P3 P4 P5 P6 P7 P8);
