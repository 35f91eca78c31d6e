//! Tuples as arguments of a task function, for `starmap`.

use crate::{sealed::Sealed, task::Task};

/// A function or closure that makes a task from a tuple of arguments, as
/// [`Pool::starmap`](crate::Pool::starmap) takes it.
///
/// It is either a function of several parameters, which receives the parts of the tuple
/// (`add::task`), or a closure that receives the tuple itself.
///
/// This trait is sealed: it cannot be implemented outside this crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not make a task of a `{Args}`",
    label = "takes other arguments",
    note = "write `pool.starmap(add::task, pairs)`, or a closure: `|(a, b)| add::task(a, b)`"
)]
pub trait MakeTask<Args, F, A, Form>: Sealed<(Args, F, A, Form)> {
    #[doc(hidden)]
    fn make(&mut self, args: Args) -> Task<F, A>;
}

/// The form for a closure that receives the tuple.
#[doc(hidden)]
pub struct Whole;

/// The form for a function whose parameters are the parts of the tuple.
#[doc(hidden)]
pub struct Parts;

impl<M, Args, F, A> Sealed<(Args, F, A, Whole)> for M where M: FnMut(Args) -> Task<F, A> {}

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
        impl<M, F, A, $($part),+> Sealed<(($($part,)+), F, A, Parts)> for M
        where
            M: FnMut($($part),+) -> Task<F, A>,
        {
        }

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
